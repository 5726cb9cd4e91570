"""Which images to make: a fixed number for each group, spread evenly over its prompts, each with its own seed.

With ``generate.pairs`` the images of the balanced set are pairs: one image for each protected value, of prompts that
differ in its words alone, from the same seed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, SerializerFunctionWrapHandler, model_serializer

from aimfair.base.errors import AimfairError
from aimfair.base.lines import Line
from aimfair.base.seeds import derive_seed, generator
from aimfair.data.biased_subset import group_sizes
from aimfair.data.images import ImageSet, Splits
from aimfair.data.settings import DataSettings
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.grammar import Prompt

Group = tuple[int, int]
"""(y, a): number of the target class, number of the protected value."""

HELD_OUT: Final = "held_out"
"""The set of the pairs on which classifiers are evaluated."""

_READ_AT_ONCE = 256  # real images, which may exceed the memory


class PlannedImage(Line):
    """An image to make.

    Attributes:
        image: its position in the plan.
        y, a: its group.
        prompt: id of the prompt.
        text: the prompt.
        replica: which of the prompt's images it is.
        seed: of its noise, in [0, 2^63); the same for the images of a pair.
        sets: "balanced", "biased" or both: where it is used. Or :data:`HELD_OUT`, which trains nothing.
        pair: number of the pair that it belongs to; None, and missing in files: to none.
        source: the real image that it is made from, as in :class:`Sources`; None, and missing in files: none.
    """

    image: int
    y: NonNegativeInt
    a: NonNegativeInt
    prompt: str
    text: str
    replica: int
    seed: int
    sets: list[str]
    pair: int | None = None
    source: str | None = None

    _optional: ClassVar[tuple[str, ...]] = ("pair", "source")

    @model_serializer(mode="wrap")
    def _without_absent(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans without pairs keep the bytes, and so the digest, that they had before there were any."""
        return {name: value for name, value in fields(self).items() if name not in self._optional or value is not None}

    @property
    def group(self) -> Group:
        return self.y, self.a


class Sources(NamedTuple):
    """The real images to make images from, by class: names ``<split>/<number in it>/<id>``. Their protected values are
    not looked at: from each an image of every value is made.

    Attributes:
        train: training images, for the sets that train.
        val: validation images, for the held-out pairs: the biased model has not trained on them.
    """

    train: Sequence[Sequence[str]]
    val: Sequence[Sequence[str]]

    @classmethod
    def of(cls, splits: Splits) -> Self:
        return cls(*(_by_class(name, splits.parts[name], len(splits.target_names)) for name in cls._fields))

    @staticmethod
    def pixels(splits: Splits, name: str) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3], the image of a name."""
        split, number, _ = name.split("/", 2)
        return np.asarray(splits.parts[split].images[int(number)])

    @staticmethod
    def digest(splits: Splits, names: Iterable[str]) -> str:
        """SHA-256 of the images of these names: equal if, and only if, all have the same pixels."""
        places: dict[str, set[int]] = {}
        for name in names:
            split, number, _ = name.split("/", 2)
            places.setdefault(split, set()).add(int(number))
        found = hashlib.sha256()
        for split, numbers in sorted(places.items()):
            chosen = np.array(sorted(numbers), dtype=np.int64)
            found.update(f"{split} {chosen.tolist()}".encode())
            for start in range(0, len(chosen), _READ_AT_ONCE):
                block = splits.parts[split].images[chosen[start : start + _READ_AT_ONCE]]
                found.update(np.ascontiguousarray(block).data)
        return found.hexdigest()

    def shuffled(self, seed: int) -> "Sources":
        """In the order in which they are used."""
        return Sources(
            *(
                [
                    [names[i] for i in generator(seed, "sources", split, y).permutation(len(names))]
                    for y, names in enumerate(classes)
                ]
                for split, classes in zip(self._fields, self, strict=True)
            )
        )


def _by_class(split: str, images: ImageSet, classes: int) -> list[list[str]]:
    return [[f"{split}/{i}/{images.ids[i]}" for i in np.flatnonzero(images.target == y)] for y in range(classes)]


def minority_ratio(settings: GenerateSettings, data: DataSettings) -> float:
    """Minority over majority group size in the biased synthetic set: its own setting, or that of the real images."""
    return data.minority_ratio if settings.minority_ratio is None else settings.minority_ratio


def make_plan(
    prompts: Sequence[Prompt], settings: GenerateSettings, data: DataSettings, sources: Sources | None = None
) -> list[PlannedImage]:
    """The images of both sets, group (0, 0) first, then (0, 1), ...

    The balanced set has ``settings.balanced_per_group`` images of each group, the biased set ``settings.biased_total``
    in the proportions of :func:`minority_ratio`. Image j of a group belongs to its prompt j mod P, so within a set the
    numbers of images of any two prompts of a group differ by at most one. Without ``settings.disjoint`` the biased set
    takes images of the balanced one first.

    With ``settings.pairs`` image j of the balanced set of group (y, a) is of one pair with image j of each other value
    a, and has the seed of a = 0; after it come ``settings.pairs.held_out`` pairs of each class that are in no other
    set. The images of the biased set that are not in the balanced one are of no pair: its groups differ in size.

    With ``sources`` image j of a group of the two sets is made from training image j of its class, in a random order,
    after the last one from the first again; and each held-out pair from a validation image of its own.

    Args:
        sources: given if, and only if, ``settings.edits``.

    Raises:
        AimfairError: the groups of the prompts are not those of ``data.majority``, the prompts of a pair differ in
            more than the protected value, or a class has too few real images.
    """
    groups: dict[Group, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.y, prompt.a), []).append(prompt)
    sizes = group_sizes(
        data.majority, max(a for _, a in groups) + 1, minority_ratio(settings, data), settings.biased_total
    )
    expected = list(np.ndindex(sizes.shape))
    if sorted(groups) != expected:
        raise AimfairError(
            f"prompts: found groups (y, a) {sorted(groups)}, expected {expected} for the {len(data.majority)} target "
            "classes of data.majority; give prompts.targets as many lists"
        )
    if settings.pairs is not None:
        _refuse_unlike(groups)
    if sources is not None:
        _refuse_shortage(sources, settings)
        sources = sources.shuffled(settings.seed)
    plan: list[PlannedImage] = []
    for y, a in expected:
        group, first = groups[y, a], groups[y, 0]
        most = max(size_of_group(settings, int(size)) for size in sizes[y])  # of any value: a pair has one j
        for j, sets, pair in _images_of_group(settings, y, int(sizes[y, a]), most):
            replica, which = divmod(j, len(group))
            prompt, source = group[which], None
            if sources is not None:
                held_out = sets == [HELD_OUT]
                source = sources.val[y][j - most] if held_out else sources.train[y][j % len(sources.train[y])]
            plan.append(
                PlannedImage(
                    image=len(plan),
                    y=y,
                    a=a,
                    prompt=prompt.id,
                    text=prompt.text,
                    replica=replica,
                    seed=derive_seed(settings.seed, prompt.id if pair is None else first[which].id, replica),
                    sets=sets,
                    pair=pair,
                    source=source,
                )
            )
    return plan


def _refuse_shortage(sources: Sources, settings: GenerateSettings) -> None:
    for y, names in enumerate(sources.train):
        if not names:
            raise AimfairError(
                f"generate.pairs.strength: class {y} has no training images to edit; leave strength out, or add some"
            )
    fewest = min(len(names) for names in sources.val)
    if settings.held_out_pairs > fewest:
        raise AimfairError(
            f"generate.pairs.held_out: found {settings.held_out_pairs}, expected at most {fewest}: with strength each"
            " is made from a validation image of its own, and the smallest class has so many"
        )


def _images_of_group(
    settings: GenerateSettings, y: int, biased: int, most: int
) -> Iterator[tuple[int, list[str], int | None]]:
    """For every image its j, its sets and its pair; ``most``: images that a group of class y has in the two sets."""
    pairs = settings.pairs
    of_class = 0 if pairs is None else settings.balanced_per_group + pairs.held_out
    for j, sets in enumerate(sets_of_group(settings, biased)):
        yield j, sets, y * of_class + j if pairs is not None and "balanced" in sets else None
    for held in range(0 if pairs is None else pairs.held_out):
        yield most + held, [HELD_OUT], y * of_class + settings.balanced_per_group + held


def _refuse_unlike(groups: Mapping[Group, Sequence[Prompt]]) -> None:
    """Raises AimfairError if prompt i of a class is not, for each protected value, of the same word and contexts."""
    for (y, a), prompts in groups.items():
        first = groups[y, 0]
        if len(prompts) != len(first):
            raise AimfairError(
                f"generate.pairs: found {len(prompts)} prompts of group (y={y}, a={a}), expected {len(first)}, as of"
                f" (y={y}, a=0); make them again with: aimfair prompts"
            )
        for one, other in zip(first, prompts, strict=True):
            if (one.target, one.contexts) != (other.target, other.contexts):
                raise AimfairError(
                    f"generate.pairs: found the prompts {one.text!r} and {other.text!r}, expected two that differ in"
                    " the protected value alone; make them again with: aimfair prompts"
                )


def size_of_group(settings: GenerateSettings, biased: int) -> int:
    """The number of images that a group needs, of which ``biased`` go to the biased set."""
    balanced = settings.balanced_per_group
    return balanced + biased if settings.disjoint else max(balanced, biased)


def sets_of_group(settings: GenerateSettings, biased: int) -> list[list[str]]:
    """For every image of :func:`size_of_group`, the sets it belongs to."""
    first = settings.balanced_per_group if settings.disjoint else 0
    sets = {"balanced": range(settings.balanced_per_group), "biased": range(first, first + biased)}
    return [[name for name, images in sets.items() if j in images] for j in range(size_of_group(settings, biased))]
