"""Which images to make: a fixed number for each group, spread evenly over its prompts, each with its own seed."""

from collections.abc import Sequence

import numpy as np
from pydantic import NonNegativeInt

from aimfair.base.errors import AimfairError
from aimfair.base.lines import Line
from aimfair.base.seeds import derive_seed
from aimfair.data.biased_subset import group_sizes
from aimfair.data.settings import DataSettings
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.grammar import Prompt

Group = tuple[int, int]
"""(y, a): number of the target class, number of the protected value."""


class PlannedImage(Line):
    """An image to make.

    Attributes:
        image: its position in the plan.
        y, a: its group.
        prompt: id of the prompt.
        text: the prompt.
        replica: which of the prompt's images it is.
        seed: of its noise, in [0, 2^63).
        sets: "balanced", "biased" or both: where it is used.
    """

    image: int
    y: NonNegativeInt
    a: NonNegativeInt
    prompt: str
    text: str
    replica: int
    seed: int
    sets: list[str]

    @property
    def group(self) -> Group:
        return self.y, self.a


def minority_ratio(settings: GenerateSettings, data: DataSettings) -> float:
    """Minority over majority group size in the biased synthetic set: its own setting, or that of the real images."""
    return data.minority_ratio if settings.minority_ratio is None else settings.minority_ratio


def make_plan(prompts: Sequence[Prompt], settings: GenerateSettings, data: DataSettings) -> list[PlannedImage]:
    """The images of both sets, group (0, 0) first, then (0, 1), ...

    The balanced set has ``settings.balanced_per_group`` images of each group, the biased set ``settings.biased_total``
    in the proportions of :func:`minority_ratio`. Image j of a group belongs to its prompt j mod P, so within a set the
    numbers of images of any two prompts of a group differ by at most one. Without ``settings.disjoint`` the biased set
    takes images of the balanced one first.

    Raises:
        AimfairError: the groups of the prompts are not those of ``data.majority``.
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
    plan: list[PlannedImage] = []
    for y, a in expected:
        group = groups[y, a]
        for j, sets in enumerate(sets_of_group(settings, int(sizes[y, a]))):
            replica, which = divmod(j, len(group))
            prompt = group[which]
            seed = derive_seed(settings.seed, prompt.id, replica)
            plan.append(
                PlannedImage(
                    image=len(plan), y=y, a=a, prompt=prompt.id, text=prompt.text, replica=replica, seed=seed, sets=sets
                )
            )
    return plan


def size_of_group(settings: GenerateSettings, biased: int) -> int:
    """The number of images that a group needs, of which ``biased`` go to the biased set."""
    balanced = settings.balanced_per_group
    return balanced + biased if settings.disjoint else max(balanced, biased)


def sets_of_group(settings: GenerateSettings, biased: int) -> list[list[str]]:
    """For every image of :func:`size_of_group`, the sets it belongs to."""
    first = settings.balanced_per_group if settings.disjoint else 0
    sets = {"balanced": range(settings.balanced_per_group), "biased": range(first, first + biased)}
    return [[name for name, images in sets.items() if j in images] for j in range(size_of_group(settings, biased))]
