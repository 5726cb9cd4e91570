"""The real images of a task: found, decoded, checked and split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.files import cache_folder
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.os_errors import explain
from aimfair.base.progress import Progress
from aimfair.base.settings import is_url
from aimfair.base.storage import Storage, StorageError, local
from aimfair.data import celeba, digits, emoji, imagefolder, parquet, table, utkface, webdataset
from aimfair.data.biased_subset import Indices, check_majority
from aimfair.data.cache import Decoded, decode_files
from aimfair.data.catalogue import SPLITS, Catalogue, leave_out, naming_left_out
from aimfair.data.duplicates import check_leakage, distinct
from aimfair.data.images import ImageSet, Pixels, Rows, Splits
from aimfair.data.settings import DRAWN, SHARDS, DataSettings
from aimfair.data.split import biased, stratified, without_validation

_READERS = {
    "table": table.read,
    "imagefolder": imagefolder.read,
    "celeba": celeba.read,
    "utkface": utkface.read,
}
_DRAWN = {"digits": digits.load, "emoji": emoji.load}


def load_splits(
    settings: DataSettings,
    *,
    log: Log = NOWHERE,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> Splits:
    """The splits of ``settings``; a function of ``settings`` and the files.

    Training sets are biased by ``settings.minority_ratio``: of CelebA the first images of each group by number, as in
    AIM-Fair (arXiv 2503.05665); of UTKFace, and of others if ``settings.train_images`` is set, a random draw. Tables
    and image folders without it are taken as they are.

    Args:
        log: gets warnings about skipped rows, files and copies, and damaged pixels in the cache.

    Raises:
        AimfairError: the data set cannot be used: the line says which file or setting is wrong.
        Interrupted: while images are decoded.
    """
    if settings.kind in DRAWN:
        return _DRAWN[settings.kind](settings)
    catalogue = read_catalogue(settings, log, progress, interrupt)
    if settings.kind == "celeba" and (difference := celeba.differs_from_published(catalogue, settings)):
        log.warn(difference)
    with naming_left_out(catalogue.rejected, catalogue.rows, "rows"):
        catalogue = with_biased_training(catalogue, settings)

    together = decoded_together(catalogue)
    decoded = [decode(catalogue.subset(numbers), settings, log, progress, interrupt) for numbers in together]
    rejected = [one for some in decoded for one in some.rejected]
    total = len(catalogue.files)
    leave_out(rejected, total, f"images of {catalogue.root}", settings.max_bad_share, log)
    kept = np.concatenate([numbers[some.kept] for numbers, some in zip(together, decoded, strict=True)])
    catalogue = catalogue.subset(kept)
    digests = [digest for some in decoded for digest in some.digests]
    if catalogue.split is not None:
        check_leakage(catalogue, digests, log)
    with (
        naming_left_out(catalogue.rejected, catalogue.rows, "rows"),
        naming_left_out(rejected, total, "images"),
    ):
        return _splits(catalogue, digests, [some.images for some in decoded], settings, log)


def _splits(
    catalogue: Catalogue,
    digests: Sequence[str],
    decoded: Sequence[Pixels],
    settings: DataSettings,
    log: Log,
) -> Splits:
    """
    Args:
        decoded: the images of each split, or of all without splits.
    """
    if catalogue.split is None:
        parts = _split_at_random(catalogue, digests, settings, log)
        pixels: list[Pixels] = [Rows(decoded[0], indices) for indices in parts]
    else:
        parts = [np.flatnonzero(catalogue.split == number) for number in range(len(SPLITS))]
        pixels = list(decoded)
    train, validation, test = (
        _image_set(catalogue.subset(indices), of_part) for indices, of_part in zip(parts, pixels, strict=True)
    )
    _check_parts(catalogue, settings, train, validation, test)
    labels = catalogue.labels
    return Splits(
        train,
        validation,
        test,
        labels.target.names,
        labels.protected.names,
        {name: attribute.names for name, attribute in labels.attributes.items()},
    )


def read_catalogue(
    settings: DataSettings, log: Log = NOWHERE, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> Catalogue:
    """As :func:`list_images`; checks ``data.max_bad_share`` of the rows and ``data.majority`` as well.

    Args:
        log: is also warned of rows that are left out, and of values that differ only in spelling.

    Raises:
        AimfairError: as there, or too many rows cannot be used.
        ConfigError: as there, or ``data.majority`` does not fit the labels.
    """
    catalogue = list_images(settings, log, progress, interrupt)
    leave_out(catalogue.rejected, catalogue.rows, f"rows of {catalogue.root}", settings.max_bad_share, log)
    for spellings in catalogue.spellings:
        log.warn(f"{spellings}; {spellings.advice}")
    with naming_left_out(catalogue.rejected, catalogue.rows, "rows"):
        check_majority(settings.majority, len(catalogue.target_names), len(catalogue.protected_names))
    return catalogue


def list_images(
    settings: DataSettings, log: Log = NOWHERE, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> Catalogue:
    """Every image that the data set lists, whether or not a run would use it; any kind that has files.

    If a table or an image folder has no validation images, some training images become validation images.

    Args:
        log: reports that, and files and tables that are not as documented.

    Raises:
        AimfairError: the folder or its tables cannot be used.
        ConfigError: a setting does not fit them.
    """
    try:
        catalogue = _read(settings, progress, interrupt)
    except StorageError as error:
        raise StorageError(f"data.root: {error}") from error
    except OSError as error:  # such as an unreadable folder
        places = {Path(str(settings.root)): "data.root", cache_folder("").parent: "XDG_CACHE_HOME"}
        raise AimfairError(explain(error, places)) from error
    for note in catalogue.notes:
        log.tell(note)
    if settings.kind == "celeba" or catalogue.split is None or (catalogue.split == SPLITS.index("val")).any():
        return catalogue
    return _with_validation(catalogue, catalogue.split, settings, log)


def _read(settings: DataSettings, progress: Progress | None, interrupt: Interrupt) -> Catalogue:
    if settings.kind in SHARDS and is_url(settings.root):  # read in place, and not copied
        root: Path | Storage = Storage(settings.root)
    else:
        root = local(settings.root or "", progress=progress, interrupt=interrupt)
        if not root.is_dir():
            found = f"found {settings.root}, which is not a folder"
            raise ConfigError(f"data.root: {found}, expected that of {settings.kind}")
    if settings.kind == "webdataset":
        return webdataset.read(root, settings, progress, interrupt)
    if settings.kind == "parquet":
        return parquet.read(root, settings)
    return _READERS[settings.kind](Path(str(root)), settings)


def _with_validation(catalogue: Catalogue, split: Indices, settings: DataSettings, log: Log) -> Catalogue:
    train = np.flatnonzero(split == SPLITS.index("train"))
    clusters = catalogue.subset(train).clusters
    _, validation = without_validation(catalogue.labels.subset(train), settings, clusters)
    split = split.copy()
    split[train[validation]] = SPLITS.index("val")
    log.tell(
        f"{catalogue.root / catalogue.listing}: found no validation images; {len(validation):,} of the"
        f" {len(train):,} training images are used instead, at random (data.validation_share, data.seed)"
    )
    order = np.argsort(split, kind="stable")  # within each split they stay sorted by name
    return replace(catalogue, split=split).subset(order)


def decode(
    catalogue: Catalogue, settings: DataSettings, log: Log, progress: Progress | None, interrupt: Interrupt
) -> Decoded:
    """The decoded images of one part of :func:`decoded_together`, through the cache."""
    return decode_files(
        catalogue.source,
        catalogue.files,
        settings.image_size,
        settings.max_pixels,
        fit=settings.fit,
        keep=settings.keep_decoded,
        log=log,
        progress=progress,
        interrupt=interrupt,
    )


def decoded_together(catalogue: Catalogue) -> list[Indices]:
    """int64 each: the images of each split, or all of them without splits.

    The cache entry of a split does not depend on the others: tasks with the same test set share its pixels, whatever
    their training images.
    """
    if catalogue.split is None:
        return [np.arange(len(catalogue.files), dtype=np.int64)]
    return [np.flatnonzero(catalogue.split == number) for number in range(len(SPLITS))]


def with_biased_training(catalogue: Catalogue, settings: DataSettings) -> Catalogue:
    """The catalogue with only a biased subset of its training images; unchanged if no subset is
    set, or without splits.

    Applied before decoding: AIM-Fair uses 20,000 of CelebA's 162,770 training images.

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
        minority_ratio=settings.minority_ratio,
        total=settings.train_images,
        draw=draw,
    )


def _split_at_random(catalogue: Catalogue, digests: Sequence[str], settings: DataSettings, log: Log) -> list[Indices]:
    """The images of training, validation and test, int64 each."""
    once = distinct(catalogue, digests, log)
    catalogue = catalogue.subset(once)
    if settings.kind == "utkface":
        train, validation, test = utkface.split(catalogue.labels, settings, log)
    else:
        train, validation, test = stratified(catalogue.labels, settings, catalogue.clusters)
        if settings.train_images is not None:
            train = _biased_training(catalogue, train, settings)
    return [once[train], once[validation], once[test]]


def _image_set(catalogue: Catalogue, pixels: Pixels) -> ImageSet:
    labels = catalogue.labels
    return ImageSet(
        pixels,
        labels.target.values,
        labels.protected.values,
        catalogue.files,
        {name: attribute.values for name, attribute in labels.attributes.items()},
        catalogue.clusters or (),
    )


def _remedy(catalogue: Catalogue, settings: DataSettings) -> str:
    """What to do about a split without images."""
    if catalogue.split is None:
        return "each group is cut by data.validation_share and data.test_share: raise them, or add images"
    if settings.kind == "table":
        return "name its images in data.split_column, or draw all splits with data.split_column null"
    return "add images to it"


def _check_parts(catalogue: Catalogue, settings: DataSettings, *parts: ImageSet) -> None:
    for name, part in zip(SPLITS, parts, strict=True):
        if len(part) == 0:
            raise AimfairError(f"{catalogue.root}: split {name!r} has no images; {_remedy(catalogue, settings)}")
    present = np.bincount(parts[0].target, minlength=len(catalogue.target_names))
    if not present.all():
        missing = catalogue.target_names[int(np.argmin(present))]
        raise AimfairError(
            f"{catalogue.root}: split 'train' has no image of class {missing!r}, which other splits have"
        )
