"""The images of a regime: real ones with a bias, and synthetic ones with a domain gap."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.base.seeds import derive_seed, generator
from aimfair.commands.settings import BUNDLED
from aimfair.config import Config
from aimfair.config.load import load
from aimfair.data import emoji
from aimfair.data.biased_subset import Indices, biased_indices, group_sizes
from aimfair.data.emoji_drawing import degrade
from aimfair.data.images import ImageSet
from aimfair.data.settings import Style
from aimfair.generation.emoji import EmojiSampler, emoji_prompts
from aimfair.generation.settings import EmojiSettings
from aimfair.prompts.grammar import Prompt
from aimfair.training.settings import ModelSettings

HELD_OUT = 0.2
"""Share of the sources of balanced synthetic images that judge trials."""

REAL_IMAGES = 600
"""Real training emoji, whatever the bias."""

MAJORITY = (1, 0)
"""Of each target class the protected value that dominates it."""

GROUPS = [(y, a) for y in range(2) for a in range(2)]

Sizes = Mapping[tuple[int, int], int]
"""Images of each group."""

BACKBONES = {
    "resnet": {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1],
               "layer_type": "basic"},
    "vit": {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 128, "patch_size": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Regime:
    """What a user may be faced with.

    Attributes:
        domain: ``noto``, ``fluent`` or ``twemoji``: the synthetic style for real Twemoji (that style itself: no gap);
            ``faces``: photographs, in place of synthetic ones those of other people.
        degradation: of the synthetic images, from 0 to 1.
        minority_ratio: of the biased real images and of the biased synthetic ones.
        per_group: balanced synthetic images of each group.
        backbone: a key of :data:`BACKBONES`.
    """

    domain: str = "noto"
    degradation: float = 0.0
    minority_ratio: float = 1 / 9
    per_group: int = 200
    backbone: str = "resnet"

    @property
    def words(self) -> str:
        """For figures."""
        domain = {"twemoji": "no gap", "noto": "other style", "fluent": "Fluent", "faces": "faces"}[self.domain]
        worse = f", degraded {self.degradation:g}" if self.degradation else ""
        ratio = "" if abs(self.minority_ratio - 1 / 9) < 1e-9 else f", minority {self.minority_ratio:.2g}"
        backbone = "" if self.backbone == "resnet" else ", ViT"
        return f"{domain}{worse}{ratio}, {self.per_group} per group{backbone}"

    @property
    def name(self) -> str:
        return f"{self.domain}-{self.degradation:g}-{self.minority_ratio:.2g}-{self.per_group}-{self.backbone}"


@dataclass(frozen=True)
class Images:
    """
    Attributes:
        train, validation: real, biased. test: real, balanced.
        balanced: synthetic; trains a final model. part, judge: the same in two, for trials.
        biased: synthetic, with the bias of ``train``.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    balanced: ImageSet
    part: ImageSet
    judge: ImageSet
    biased: ImageSet


@cache
def base() -> Config:
    """The configuration ``premise`` with shorter trainings."""
    config = load(BUNDLED / "premise.yaml", {})
    train = config.train.model_copy(update={"epochs": 20})
    finetune = config.finetune.model_copy(update={"epochs": 8})
    return config.model_copy(update={"train": train, "finetune": finetune})


def model_settings(regime: Regime) -> ModelSettings:
    config = dict(BACKBONES[regime.backbone])
    if regime.backbone == "vit":
        config["image_size"] = 64 if regime.domain == "faces" else base().data.image_size
    return base().model.model_copy(update={"config": config})


def images_of(regime: Regime, replicate: int, faces: Path | None) -> Images:
    """Of one replicate, which has people of its own in every set."""
    if regime.domain == "faces":
        return _faces(regime, replicate, faces)
    return _emoji(regime, replicate)


# -- emoji -------------------------------------------------------------------------------------------------------------


def _emoji(regime: Regime, replicate: int) -> Images:
    data = base().data.model_copy(update={"seed": replicate, "minority_ratio": regime.minority_ratio,
                                          "train_images": REAL_IMAGES})  # fmt: skip
    splits = emoji.load(data)
    prompts = emoji_prompts(data)

    def drawn(purpose: str, sizes: Sizes) -> ImageSet:
        return emoji_images(regime, replicate, prompts, sizes, purpose)

    balanced = drawn("balanced", dict.fromkeys(GROUPS, regime.per_group))
    return _with_biased(regime, splits.train, splits.validation, splits.test, balanced, drawn)


def emoji_images(regime: Regime, replicate: int, prompts: Sequence[Prompt], sizes: Sizes, *purpose: str) -> ImageSet:
    """Synthetic images of each group, of all of its ``prompts`` alike; ``purpose`` decides which and how drawn."""
    style: Style = regime.domain  # type: ignore[assignment]
    sampler = EmojiSampler(EmojiSettings(style=style, degradation=regime.degradation), base().data.image_size)
    chosen = []
    for group, size in sizes.items():
        mine = [one for one in prompts if (one.y, one.a) == group]
        order = generator(replicate, "study", *purpose, *group).permutation(len(mine))
        chosen += [(mine[order[i % len(order)]], i) for i in range(size)]
    seeds = [derive_seed(replicate, "study", *purpose, one.id, number) for one, number in chosen]
    pixels = sampler.sample([one.text for one, _ in chosen], seeds).images
    return ImageSet(pixels, *_labels([(one.y, one.a) for one, _ in chosen]), tuple(one.id for one, _ in chosen))


# -- faces -------------------------------------------------------------------------------------------------------------

_REAL, _TEST, _VALIDATION = 225, 220, 45
"""Faces of each group that may train or validate, that test, and of the former those that validate."""


def _faces(regime: Regime, replicate: int, folder: Path | None) -> Images:
    if folder is None:
        raise AimfairError("--faces: not given; expected the folder with faces.csv for regimes of faces")
    every = _read_faces(folder)
    parts: dict[str, list[int]] = {"real": [], "validation": [], "test": []}
    others: dict[tuple[int, int], list[int]] = {}
    for y, a in GROUPS:
        of = np.flatnonzero((every.target == y) & (every.protected == a))
        order = generator(replicate, "study", "faces", y, a).permutation(of).tolist()
        parts["test"] += order[:_TEST]
        parts["validation"] += order[_TEST : _TEST + _VALIDATION]
        parts["real"] += order[_TEST + _VALIDATION : _TEST + _REAL]
        others[y, a] = order[_TEST + _REAL :]

    def biased(part: str) -> ImageSet:
        among = every.subset(parts[part])
        return among.subset(_biased(among, regime.minority_ratio, replicate))

    def drawn(purpose: str, sizes: Sizes) -> ImageSet:
        chosen = []
        for group, size in sizes.items():
            if size > len(others[group]):
                raise AimfairError(f"{regime.name}: group {group} has {len(others[group])} other faces, not {size}")
            chosen += generator(replicate, "study", purpose, *group).permutation(others[group])[:size].tolist()
        images = every.subset(chosen)
        seeds = [derive_seed(replicate, "study", purpose, number) for number in chosen]
        return replace(images, images=degrade(np.asarray(images.images), regime.degradation, seeds))

    balanced = drawn("balanced", dict.fromkeys(GROUPS, regime.per_group))
    test = every.subset(parts["test"])
    return _with_biased(regime, biased("real"), biased("validation"), test, balanced, drawn)


@cache
def _read_faces(folder: Path) -> ImageSet:
    """Target: gender; protected: whether the label of race is white."""
    with (folder / "faces.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([np.asarray(Image.open(folder / row["file"]).convert("RGB")) for row in rows])
    groups = [(int(row["gender"] == "male"), int(row["race"] == "white")) for row in rows]
    return ImageSet(pixels, *_labels(groups), tuple(row["file"] for row in rows))


# -- both --------------------------------------------------------------------------------------------------------------


Drawn = Callable[[str, Sizes], ImageSet]
"""Synthetic images for a purpose: so many of each group."""


def _with_biased(
    regime: Regime, train: ImageSet, validation: ImageSet, test: ImageSet, balanced: ImageSet, drawn: Drawn
) -> Images:
    total = min(len(balanced), len(train))
    sizes = group_sizes(MAJORITY, 2, regime.minority_ratio, total)
    part, judge = _held_out(balanced)
    biased = drawn("biased", {group: int(sizes[group]) for group in GROUPS})
    return Images(train, validation, test, balanced, part, judge, biased)


def _held_out(balanced: ImageSet) -> tuple[ImageSet, ImageSet]:
    """In two, by the sources of the images, of each group alike."""
    judging: set[str] = set()
    for group in GROUPS:
        mine = [i for i, of in enumerate(zip(balanced.target, balanced.protected, strict=True)) if of == group]
        sources = list(dict.fromkeys(balanced.ids[i] for i in mine))
        judging |= set(sources[: max(round(HELD_OUT * len(sources)), 1)])
    held = np.array([one in judging for one in balanced.ids])
    return balanced.subset(np.flatnonzero(~held)), balanced.subset(np.flatnonzero(held))


def _biased(images: ImageSet, minority_ratio: float, replicate: int) -> Indices:
    return biased_indices(images.target, images.protected, MAJORITY, minority_ratio, None, replicate)


def _labels(groups: Sequence[tuple[int, int]]) -> tuple[Indices, Indices]:
    values = np.array(groups, dtype=np.int64)
    return values[:, 0], values[:, 1]
