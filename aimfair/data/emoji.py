"""People emoji of three drawing styles: a real domain, and others that show the same people in another way.

Each of 77 people is there as a woman and as a man in five skin tones, so target and protected attribute are known from
the code points. Licences and attribution: ``aimfair/assets/emoji/README.md``; made by ``tools/premise_images.py``.
"""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.errors import ConfigError
from aimfair.base.seeds import derive_seed, generator
from aimfair.data.biased_subset import check_majority
from aimfair.data.emoji_drawing import draw
from aimfair.data.images import ImageSet, Splits
from aimfair.data.labels import UNKNOWN, Attribute, Labels
from aimfair.data.settings import EMOJI, DataSettings, Style
from aimfair.data.split import biased

ASSETS = Path(__file__).parent.parent / "assets" / "emoji"

PEOPLE = "people.tsv"
"""The table of people in :data:`ASSETS`: one for each row of a sheet."""

SIZE = 48
"""Pixels along each side of a stored emoji."""

MIN_SIZE, MAX_SIZE = 16, 96
"""Pixels along each side of a drawn one."""

TONES = EMOJI["fitzpatrick"]


@dataclass(frozen=True)
class Emoji:
    """One of the 770 of a style.

    Attributes:
        number: its position in :func:`pixels`.
        person: what woman and man have in common, such as "firefighter".
        scene, gender, fitzpatrick: values of these attributes.
    """

    number: int
    person: str
    scene: str
    gender: str
    fitzpatrick: str

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.gender}, {self.person}, skin {self.fitzpatrick}"

    @property
    def tone(self) -> str | None:
        """Of five skin tones the two lightest are light, the two darkest dark, the middle one is neither."""
        return ("light", "light", None, "dark", "dark")[TONES.index(self.fitzpatrick)]

    def value(self, attribute: str) -> str | None:
        """Of an attribute in :data:`aimfair.data.settings.EMOJI`; None if it has none."""
        found: str | None = getattr(self, attribute)
        return found


@cache
def people() -> tuple[tuple[str, str], ...]:
    """Name and scene of each of the 77."""
    with (ASSETS / PEOPLE).open(encoding="utf-8", newline="") as file:
        return tuple((row["person"], row["scene"]) for row in csv.DictReader(file, delimiter="\t"))


@cache
def everyone() -> tuple[Emoji, ...]:
    """All emoji of a style, in the order of the sheets."""
    cells = ((*one, gender, tone) for one in people() for gender in EMOJI["gender"] for tone in TONES)
    return tuple(Emoji(number, *cell) for number, cell in enumerate(cells))


@cache
def pixels(style: Style) -> npt.NDArray[np.uint8]:
    """uint8 [770, SIZE, SIZE, 4], RGBA, read-only."""
    with Image.open(sheet_file(style)) as image:
        sheet = np.asarray(image.convert("RGBA"))
    cells = sheet.reshape(len(people()), SIZE, -1, SIZE, 4).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 4)
    cells.flags.writeable = False
    return cells


def sheet_file(style: Style) -> Path:
    """An image with a row for each person: the woman from light to dark, then the man."""
    return ASSETS / f"{style}.webp"


def load(settings: DataSettings) -> Splits:
    """Biased training and validation images, and a test set with every emoji of its people equally often.

    No person is in two splits. ``settings.seed`` draws the people of each, the biased subsets and the drawings.

    Raises:
        ConfigError: an unsupported image size or majority.
        AimfairError: a split has no people, or a group too few images.
    """
    if not MIN_SIZE <= settings.image_size <= MAX_SIZE:
        raise ConfigError(
            f"data.image_size: found {settings.image_size}, expected {MIN_SIZE} to {MAX_SIZE} pixels for emoji"
        )
    train, validation, test = (usable(settings, part) for part in split_people(settings))
    labels = labels_of(settings, train)
    check_majority(settings.majority, len(labels.target.names), len(labels.protected.names))
    return Splits(
        train=_biased(settings, "train", train, settings.train_images),
        validation=_biased(settings, "validation", validation),
        test=_draw(settings, "test", _drawings(settings, test)),
        target_names=labels.target.names,
        protected_names=labels.protected.names,
        attribute_names={name: one.names for name, one in labels.attributes.items()},
    )


def split_people(settings: DataSettings) -> tuple[set[str], set[str], set[str]]:
    """The names of the people of training, validation and test: shares of each scene.

    Raises:
        AimfairError: a split has none of a scene.
    """
    train, validation, test = set[str](), set[str](), set[str]()
    for scene in EMOJI["scene"]:
        names = [name for name, its_scene in people() if its_scene == scene]
        order = [names[number] for number in generator(settings.seed, "emoji", "people", scene).permutation(len(names))]
        sizes = [round(share * len(names)) for share in (settings.validation_share, settings.test_share)]
        for key, size in zip(("validation_share", "test_share"), sizes, strict=True):
            if size == 0:
                raise ConfigError(
                    f"data.{key}: found {getattr(settings, key)}, which is none of {len(names)} people of scene"
                    f" {scene!r}; raise it"
                )
        validation.update(order[: sizes[0]])
        test.update(order[sizes[0] : sum(sizes)])
        train.update(order[sum(sizes) :])
    return train, validation, test


def usable(settings: DataSettings, names: Collection[str]) -> list[Emoji]:
    """The emoji of these people that have a target and a protected value."""
    needed = (settings.target, settings.protected, *settings.intersect_with)
    return [one for one in everyone() if one.person in names and all(one.value(name) is not None for name in needed)]


def labels_of(settings: DataSettings, emoji: Sequence[Emoji]) -> Labels:
    """Labels of N emoji."""
    return Labels.of(settings, {name: _attribute(name, emoji) for name in settings.roles()})


def _attribute(name: str, emoji: Sequence[Emoji]) -> Attribute:
    values = [one.value(name) or UNKNOWN for one in emoji]
    names = (*EMOJI[name], UNKNOWN) if UNKNOWN in values else EMOJI[name]
    return Attribute(np.array([names.index(value) for value in values], dtype=np.int64), names)


_Drawing = tuple[Emoji, int]
"""An emoji, and which of its drawings."""


def _drawings(settings: DataSettings, emoji: Sequence[Emoji]) -> list[_Drawing]:
    return [(one, drawing) for one in emoji for drawing in range(settings.drawings)]


def _biased(settings: DataSettings, part: str, emoji: Sequence[Emoji], total: int | None = None) -> ImageSet:
    drawings = _drawings(settings, emoji)
    chosen = biased(
        labels_of(settings, [one for one, _ in drawings]),
        np.arange(len(drawings), dtype=np.int64),
        settings,
        what=f"biased {part} set",
        minority_ratio=settings.minority_ratio,
        total=total,
    )
    return _draw(settings, part, [drawings[number] for number in chosen])


def _draw(settings: DataSettings, part: str, drawings: Sequence[_Drawing]) -> ImageSet:
    emoji = [one for one, _ in drawings]
    labels = labels_of(settings, emoji)
    seeds = [derive_seed(settings.seed, "emoji", part, one.name, drawing) for one, drawing in drawings]
    return ImageSet(
        draw(pixels(settings.style)[[one.number for one in emoji]], seeds, settings.image_size),
        labels.target.values,
        labels.protected.values,
        tuple(one.name for one in emoji),
        {name: attribute.values for name, attribute in labels.attributes.items()},
        tuple(one.person for one in emoji),
    )
