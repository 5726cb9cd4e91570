"""The real images of a task: found, decoded, checked and split."""

import numpy as np

from aimfair.config import DataSettings
from aimfair.data import celeba, digits, imagefolder, table, utkface
from aimfair.data.bias import Indices, check_majority
from aimfair.data.cache import Decoded, decode_files
from aimfair.data.catalogue import SPLITS, Catalogue, leave_out
from aimfair.data.duplicates import check_leakage, distinct
from aimfair.data.images import ImageSet, Splits
from aimfair.data.split import biased, stratified
from aimfair.errors import AimfairError, ConfigError
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.log import NOWHERE, Log
from aimfair.run.progress import Progress

_READERS = {"table": table.read, "imagefolder": imagefolder.read, "celeba": celeba.read, "utkface": utkface.read}


def load_splits(
    settings: DataSettings,
    *,
    log: Log = NOWHERE,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> Splits:
    """The splits of ``settings``; a function of ``settings`` and the files alone, none of which is changed.

    Training sets are biased by ``settings.bias``: of CelebA the first images of each group by number, as in AIM-Fair
    (arXiv 2503.05665); of UTKFace, and of others if ``settings.train_images`` is set, images that are drawn. Tables and
    image folders without it are taken as they are.

    Args:
        log: is warned of rows, files and copies that are left out.

    Raises:
        AimfairError: the data set cannot be used: the line says which file or setting is wrong.
        Interrupted: while images are decoded.
    """
    if settings.kind == "digits":
        return digits.load(settings)
    catalogue = read_catalogue(settings)
    root = catalogue.root
    leave_out(catalogue.rejected, catalogue.rows, f"rows of {root}", settings.max_bad_share, log)
    if settings.kind == "celeba" and (difference := celeba.differs_from_published(catalogue, settings)):
        log.warn(difference)
    catalogue = with_biased_training(catalogue, settings)

    decoded = decode_files(
        root,
        catalogue.files,
        settings.image_size,
        settings.max_pixels,
        fit=settings.fit,
        progress=progress,
        interrupt=interrupt,
    )
    leave_out(decoded.rejected, len(catalogue.files), f"images of {root}", settings.max_bad_share, log)
    catalogue = catalogue.subset(decoded.kept)
    labels = catalogue.labels
    images = ImageSet(
        decoded.images,
        labels.target.values,
        labels.protected.values,
        catalogue.files,
        {name: attribute.values for name, attribute in labels.attributes.items()},
    )
    parts = _split(catalogue, images, decoded, settings, log)
    train, validation, test = (_part(images, indices) for indices in parts)
    _check_parts(catalogue, train, validation, test)
    return Splits(
        train,
        validation,
        test,
        labels.target.names,
        labels.protected.names,
        {name: attribute.names for name, attribute in labels.attributes.items()},
    )


def read_catalogue(settings: DataSettings) -> Catalogue:
    """As :func:`list_images`, of labels that ``data.majority`` fits.

    Raises:
        AimfairError: as there.
        ConfigError: as there, or it does not fit.
    """
    catalogue = list_images(settings)
    check_majority(settings.majority, len(catalogue.target_names), len(catalogue.protected_names))
    return catalogue


def list_images(settings: DataSettings) -> Catalogue:
    """Every image that the data set of ``settings`` lists, whatever a run would take; any kind but digits.

    Raises:
        AimfairError: the folder or its tables cannot be used.
        ConfigError: a setting does not fit them.
    """
    if settings.root is None or not settings.root.is_dir():
        raise ConfigError(f"data.root: found {settings.root}, which is no folder, expected that of {settings.kind}")
    try:
        return _READERS[settings.kind](settings.root, settings)
    except OSError as error:  # of a folder that may not be looked into
        raise AimfairError(f"{settings.root}: cannot be read: {error}") from error


def with_biased_training(catalogue: Catalogue, settings: DataSettings) -> Catalogue:
    """The catalogue with the training images of a biased set alone; as it is where that is not asked for, or not yet.

    Chosen before anything is decoded: of CelebA's 162,770 training images AIM-Fair uses 20,000.

    Raises:
        AimfairError: a group has too few images.
    """
    first_by_number = settings.kind == "celeba"
    if catalogue.split is None or (settings.train_images is None and not first_by_number):
        return catalogue
    train = _biased_training(
        catalogue, np.flatnonzero(catalogue.split == SPLITS.index("train")), settings, draw=not first_by_number
    )
    others = np.flatnonzero(catalogue.split != SPLITS.index("train"))
    return catalogue.subset(np.sort(np.concatenate([train, others])))


def _biased_training(catalogue: Catalogue, train: Indices, settings: DataSettings, draw: bool = True) -> Indices:
    return biased(
        catalogue.labels,
        train,
        settings,
        what="biased training set",
        bias=settings.bias,
        total=settings.train_images,
        draw=draw,
    )


def _split(
    catalogue: Catalogue, images: ImageSet, decoded: Decoded, settings: DataSettings, log: Log
) -> tuple[Indices, Indices, Indices]:
    """The images of training, validation and test, int64 each."""
    if catalogue.split is None:
        once = distinct(images, decoded.digests, log)
        catalogue = catalogue.subset(once)
        if settings.kind == "utkface":
            train, validation, test = utkface.split(catalogue.labels, settings)
        else:
            train, validation, test = stratified(catalogue.labels, settings)
            if settings.train_images is not None:
                train = _biased_training(catalogue, train, settings)
        return once[train], once[validation], once[test]
    check_leakage(images, decoded.digests, catalogue.split, catalogue.root / catalogue.listing, log)
    train, validation, test = (np.flatnonzero(catalogue.split == number) for number in range(len(SPLITS)))
    return train, validation, test


def _part(images: ImageSet, indices: Indices) -> ImageSet:
    """As ``images.subset``, without a copy of the pixels where the indices follow each other."""
    if len(indices) == 0 or indices[-1] - indices[0] != len(indices) - 1:
        return images.subset(indices)
    run = slice(int(indices[0]), int(indices[-1]) + 1)
    return ImageSet(
        images.images[run],
        images.target[run],
        images.protected[run],
        images.ids[run],
        {name: values[run] for name, values in images.attributes.items()},
    )


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
