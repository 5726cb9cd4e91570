"""UTKFace (Zhang, Song and Qi, 2017): face crops whose file names give age, gender, race and date.

There are no official splits. After :func:`aimfair.data.split.stratified`, training and validation are reduced to
biased subsets (checkpoints are selected without group labels), the test set to a balanced one.
"""

import re
from pathlib import Path

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.data.biased_subset import Indices
from aimfair.data.catalogue import Catalogue, Rejected, image_files, left_out, naming_left_out
from aimfair.data.labels import Attribute, Labels
from aimfair.data.settings import UTKFACE, DataSettings
from aimfair.data.split import biased, stratified

AGE_CUTS = (20, 40, 60)
"""Lower bounds of the age bands but the first."""

_NAME = re.compile(
    r"(?P<age>-?\d{1,9})_(?P<gender>-?\d{1,9})_(?P<race>-?\d{1,9})_\d+((\.jpe?g)?\.chip)?\.(jpe?g|png|webp)",
    re.ASCII | re.IGNORECASE,
)
_GREATEST = {"age": 116, "gender": 1, "race": 4}
"""Of the data set's documentation; the least is 0."""

_WHITE = 0


def read(root: Path, settings: DataSettings) -> Catalogue:
    """Every image under ``root`` whose name is ``[age]_[gender]_[race]_[date].jpg``, ``....chip.jpg`` or
    ``....jpg.chip.jpg``, in any case, or the same with another suffix of images.

    Attributes are those of :data:`aimfair.data.settings.UTKFACE`. Images with other names, which some copies hold, and
    impossible values are rejected.

    Raises:
        ConfigError: an attribute has fewer than two values.
        AimfairError: there are no such images.
    """
    files, facts, rejected = [], [], []
    for file in image_files(root):
        match = _NAME.fullmatch(file.rpartition("/")[2])
        if match is None:
            rejected.append(Rejected(file, "the name is not [age]_[gender]_[race]_[date].jpg"))
            continue
        values = {part: int(match[part]) for part in _GREATEST}
        impossible = next((part for part, greatest in _GREATEST.items() if not 0 <= values[part] <= greatest), None)
        if impossible is not None:
            reason = f"the {impossible} is {values[impossible]}, expected 0 to {_GREATEST[impossible]}"
            rejected.append(Rejected(file, reason))
        else:
            files.append(file)
            facts.append(list(values.values()))
    if not files:
        raise AimfairError(
            f"{root}: found no image named [age]_[gender]_[race]_[date].jpg; is data.root UTKFace's folder?"
            + left_out(rejected, len(rejected), "files")
        )
    age, gender, race = np.array(facts, dtype=np.int64).T
    known = {
        "gender": gender,
        "white": (race == _WHITE).astype(np.int64),
        "race": race,
        "age": np.digitize(age, AGE_CUTS).astype(np.int64),
    }
    total = len(files) + len(rejected)
    with naming_left_out(rejected, total, "files"):
        labels = Labels.of(settings, {name: Attribute(known[name], names) for name, names in UTKFACE.items()})
    return Catalogue(
        root=root,
        listing="the folder",
        files=tuple(files),
        split=None,
        labels=labels,
        rows=total,
        rejected=tuple(rejected),
    )


def split(labels: Labels, settings: DataSettings, log: Log) -> tuple[Indices, Indices, Indices]:
    """Training, validation and test images, int64 each.

    Args:
        labels: of images without copies.
        log: reports how many test images balancing drops.

    Raises:
        AimfairError: a group has too few images.
    """
    train, validation, test = stratified(labels, settings)
    parts = (
        biased(
            labels,
            train,
            settings,
            what="biased training set",
            minority_ratio=settings.minority_ratio,
            total=settings.train_images,
        ),
        biased(labels, validation, settings, what="biased validation set", minority_ratio=settings.minority_ratio),
        biased(labels, test, settings, what="balanced test set", minority_ratio=1.0),
    )
    if dropped := len(test) - len(parts[2]):
        log.tell(
            f"the balanced test set has {len(parts[2]):,} of the {len(test):,} images of its split: each group is"
            f" as large as the smallest; {dropped:,} are not used"
        )
    return parts
