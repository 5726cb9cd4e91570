"""UTKFace (Zhang, Song and Qi, 2017): face crops whose names say age, gender, race and date.

There are no official splits. Each group (y, a) is shuffled by ``data.seed`` and cut 70/15/15; of these parts training
and validation are biased subsets (nobody who chooses a checkpoint need know the groups), the test set is balanced.
"""

import os
import re
from pathlib import Path

import numpy as np

from aimfair.config import DataSettings
from aimfair.data.bias import Indices, biased_indices
from aimfair.data.catalogue import Catalogue, Rejected
from aimfair.errors import AimfairError
from aimfair.seeds import generator

VALIDATION_SHARE = TEST_SHARE = 0.15

_NAME = re.compile(r"\d{1,3}_(?P<gender>[01])_(?P<race>[0-4])_\d+\.jpg(\.chip\.jpg)?", re.ASCII)
_WHITE = "0"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def read(root: Path, _: DataSettings) -> Catalogue:
    """Every image under ``root`` whose name is ``[age]_[gender]_[race]_[date].jpg`` or ``....jpg.chip.jpg``.

    The target is gender, the protected attribute whether the race is white. Images with other names (some copies hold a
    few that lack a part) are rejected.

    Raises:
        AimfairError: there are no such images.
    """
    files, genders, whites, rejected = [], [], [], []
    for file in sorted(_images(root)):
        match = _NAME.fullmatch(file.rpartition("/")[2])
        if match is None:
            rejected.append(Rejected(file, "the name is not [age]_[gender]_[race]_[date].jpg"))
        else:
            files.append(file)
            genders.append(int(match["gender"]))
            whites.append(int(match["race"] == _WHITE))
    if not files:
        raise AimfairError(
            f"{root}: found no image named [age]_[gender]_[race]_[date].jpg; is data.root UTKFace's folder?"
        )
    return Catalogue(
        root=root,
        listing="the folder",
        files=tuple(files),
        split=None,
        target=np.array(genders, dtype=np.int64),
        protected=np.array(whites, dtype=np.int64),
        target_names=("male", "female"),
        protected_names=("not white", "white"),
        rows=len(files) + len(rejected),
        rejected=tuple(rejected),
    )


def split(target: Indices, protected: Indices, settings: DataSettings, seed: int) -> tuple[Indices, Indices, Indices]:
    """Training, validation and test images, int64 each.

    Args:
        target, protected: int64 [N], y and a of images of which no two are copies.
        seed: draws the biased training set from its part.

    Raises:
        AimfairError: a group has too few images.
    """
    parts: tuple[list[Indices], list[Indices], list[Indices]] = ([], [], [])
    for y in range(2):
        for a in range(2):
            members = np.flatnonzero((target == y) & (protected == a))
            members = generator(settings.seed, "utkface split", y, a).permutation(members)
            test, validation = int(TEST_SHARE * len(members)), int(VALIDATION_SHARE * len(members))
            cuts = np.split(members, [len(members) - test - validation, len(members) - test])
            for part, cut in zip(parts, cuts, strict=True):
                part.append(cut)

    def biased(part: list[Indices], bias: float, total: int | None, draw: int) -> Indices:
        numbers = np.sort(np.concatenate(part))
        chosen = biased_indices(
            target[numbers], protected[numbers], settings.majority, bias, total, draw, protected_values=2
        )
        return numbers[chosen]

    train, validation_part, test_part = parts
    return (
        biased(train, settings.bias, settings.train_images, seed),
        biased(validation_part, settings.bias, None, settings.seed),
        biased(test_part, 1.0, None, settings.seed),
    )


def _images(root: Path) -> list[str]:
    """Paths relative to ``root``, with "/", of all files in it and its folders that are named as images."""
    return [
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, onerror=_refuse)
        for name in names
        if name.lower().endswith(_IMAGE_SUFFIXES)
    ]


def _refuse(error: OSError) -> None:
    """``os.walk`` would pass over a folder that it may not read."""
    raise AimfairError(f"{error.filename}: cannot be listed: {error.strerror}") from error
