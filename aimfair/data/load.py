"""The real images of a task: found, decoded, checked and split."""

from pathlib import Path

import numpy as np

from aimfair.config import DataSettings
from aimfair.data import celeba, digits, table, utkface
from aimfair.data.bias import Indices, biased_indices, check_majority
from aimfair.data.cache import Decoded, decode_files
from aimfair.data.catalogue import SPLITS, Catalogue, leave_out
from aimfair.data.duplicates import check_leakage, distinct
from aimfair.data.images import ImageSet, Splits
from aimfair.errors import AimfairError, ConfigError
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.log import NOWHERE, Log
from aimfair.run.progress import Progress


def load_splits(
    settings: DataSettings,
    seed: int,
    *,
    log: Log = NOWHERE,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> Splits:
    """The splits of ``settings``; a function of ``settings``, ``seed`` and the files alone, none of which is changed.

    Training sets are biased by ``settings.bias``: of CelebA the first images of each group by number, as in AIM-Fair
    (arXiv 2503.05665); of UTKFace, and of a table if ``settings.train_images`` is set, images that are drawn. A table
    without it is taken as it is.

    Args:
        seed: draws the biased training set; the splits themselves follow ``settings.seed``.
        log: is warned of rows, files and copies that are left out.

    Raises:
        AimfairError: the data set cannot be used: the line says which file or setting is wrong.
        Interrupted: while images are decoded.
    """
    if settings.kind == "digits":
        return digits.load(settings)
    root = _check_settings(settings)
    read = {"table": table.read, "celeba": celeba.read, "utkface": utkface.read}[settings.kind]
    catalogue = read(root, settings)
    _check_classes(catalogue, settings)
    leave_out(catalogue.rejected, catalogue.rows, f"rows of {root}", settings.max_bad_share, log)
    catalogue = _with_biased_training(catalogue, settings, seed)

    decoded = decode_files(
        root, catalogue.files, settings.image_size, settings.max_pixels, progress=progress, interrupt=interrupt
    )
    leave_out(decoded.rejected, len(catalogue.files), f"images of {root}", settings.max_bad_share, log)
    kept = decoded.kept
    images = ImageSet(
        decoded.images,
        catalogue.target[kept],
        catalogue.protected[kept],
        tuple(catalogue.files[number] for number in kept),
    )
    parts = _split(catalogue, images, decoded, settings, seed, log)
    train, validation, test = (_part(images, indices) for indices in parts)
    _check_parts(catalogue, train, validation, test)
    return Splits(train, validation, test, catalogue.target_names, catalogue.protected_names)


def _check_settings(settings: DataSettings) -> Path:
    """The folder of the data set."""
    if settings.root is None or not settings.root.is_dir():
        raise ConfigError(f"data.root: found {settings.root}, which is no folder, expected that of {settings.kind}")
    if settings.target == settings.protected:
        raise ConfigError(f"data.protected: found {settings.protected!r}, the target, expected another attribute")
    return settings.root


def _check_classes(catalogue: Catalogue, settings: DataSettings) -> None:
    for key, attribute, names in (
        ("data.target", settings.target, catalogue.target_names),
        ("data.protected", settings.protected, catalogue.protected_names),
    ):
        if len(names) < 2:
            raise ConfigError(f"{key}: {attribute!r} has {len(names)} values, {', '.join(names)}, expected two or more")
    check_majority(settings.majority, len(catalogue.target_names), len(catalogue.protected_names))


def _with_biased_training(catalogue: Catalogue, settings: DataSettings, seed: int) -> Catalogue:
    """The catalogue with the training images of a biased set alone; as it is where that is not asked for, or not yet.

    Chosen before anything is decoded: of CelebA's 162,770 training images AIM-Fair uses 20,000.
    """
    first_by_number = settings.kind == "celeba"
    if catalogue.split is None or (settings.train_images is None and not first_by_number):
        return catalogue
    train = np.flatnonzero(catalogue.split == SPLITS.index("train"))
    chosen = biased_indices(
        catalogue.target[train],
        catalogue.protected[train],
        settings.majority,
        settings.bias,
        settings.train_images,
        None if first_by_number else seed,
        protected_values=len(catalogue.protected_names),
    )
    others = np.flatnonzero(catalogue.split != SPLITS.index("train"))
    return catalogue.subset(np.sort(np.concatenate([train[chosen], others])))


def _split(
    catalogue: Catalogue, images: ImageSet, decoded: Decoded, settings: DataSettings, seed: int, log: Log
) -> tuple[Indices, Indices, Indices]:
    """The images of training, validation and test, int64 each."""
    if catalogue.split is None:
        once = distinct(images, decoded.digests, log)
        train, validation, test = utkface.split(images.target[once], images.protected[once], settings, seed)
        return once[train], once[validation], once[test]
    split = catalogue.split[decoded.kept]
    check_leakage(images, decoded.digests, split, catalogue.root / catalogue.listing, log)
    train, validation, test = (np.flatnonzero(split == number) for number in range(len(SPLITS)))
    return train, validation, test


def _part(images: ImageSet, indices: Indices) -> ImageSet:
    """As ``images.subset``, without a copy of the pixels where the indices follow each other."""
    if len(indices) == 0 or indices[-1] - indices[0] != len(indices) - 1:
        return images.subset(indices)
    run = slice(int(indices[0]), int(indices[-1]) + 1)
    return ImageSet(images.images[run], images.target[run], images.protected[run], images.ids[run])


def _check_parts(catalogue: Catalogue, *parts: ImageSet) -> None:
    for name, part in zip(SPLITS, parts, strict=True):
        if len(part) == 0:
            raise AimfairError(f"{catalogue.root}: split {name!r} has no images")
    present = np.bincount(parts[0].target, minlength=len(catalogue.target_names))
    if not present.all():
        missing = catalogue.target_names[int(np.argmin(present))]
        raise AimfairError(
            f"{catalogue.root}: split 'train' has no image of class {missing!r}, which other splits have"
        )
