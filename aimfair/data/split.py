"""Splits and biased subsets, drawn by ``data.seed`` from labeled images."""

from collections.abc import Sequence

import numpy as np

from aimfair.base.seeds import generator
from aimfair.data.biased_subset import Indices, biased_indices
from aimfair.data.labels import Labels
from aimfair.data.settings import DataSettings


def stratified(
    labels: Labels, settings: DataSettings, clusters: Sequence[str] | None = None
) -> tuple[Indices, Indices, Indices]:
    """Training, validation and test images, int64 ascending each, together all of ``labels``.

    Each group (y, a) is shuffled and cut: ``test_share`` and ``validation_share`` of it, rounded down, become test and
    validation images, so small groups may have none there. Only ``data.protected`` defines a: ``data.intersect_with``
    moves no image to another part.

    Args:
        clusters: N strings, equal for images of one cluster, which stays in one part and counts towards the group of
            most of its images, so the shares hold only approximately. None: each image is a cluster.
    """
    train, validation, test = _cut(
        labels, settings, clusters, (settings.validation_share, settings.test_share), "split"
    )
    return train, validation, test


def without_validation(
    labels: Labels, settings: DataSettings, clusters: Sequence[str] | None = None
) -> tuple[Indices, Indices]:
    """Training and validation images, int64 ascending each, from the training images of a data set without validation
    images; otherwise as :func:`stratified`."""
    train, validation = _cut(labels, settings, clusters, (settings.validation_share,), "validation")
    return train, validation


def _cut(
    labels: Labels, settings: DataSettings, clusters: Sequence[str] | None, shares: Sequence[float], name: str
) -> list[Indices]:
    """The remainder, then the part of each share."""
    protected = labels.attributes[settings.protected] if settings.intersect_with else labels.protected
    strata = labels.target.values * len(protected.names) + protected.values
    count = len(labels.target.names) * len(protected.names)
    unit_of = _units(clusters, len(strata))  # of each image
    sizes = np.bincount(unit_of)
    tally = np.zeros((len(sizes), count), dtype=np.int64)
    np.add.at(tally, (unit_of, strata), 1)
    stratum_of = tally.argmax(axis=1)
    part_of = np.zeros(len(sizes), dtype=np.int64)
    for stratum in range(count):
        units = np.flatnonzero(stratum_of == stratum)
        y, a = divmod(stratum, len(protected.names))
        units = generator(settings.seed, name, y, a).permutation(units)
        size = sizes[units]
        # Number of images from the end to the middle of each unit: for single images the last n are taken.
        middle = np.cumsum(size[::-1])[::-1] - size / 2
        # The epsilon is for products that should be integers but are rounded down: 0.29 * 100.
        ends = np.cumsum([int(share * size.sum() + 1e-9) for share in reversed(shares)])
        for part, end in zip(range(1, len(shares) + 1), reversed(ends), strict=True):
            part_of[units[middle < end]] = part
    return [np.flatnonzero(part_of[unit_of] == part) for part in range(len(shares) + 1)]


def _units(clusters: Sequence[str] | None, count: int) -> Indices:
    """int64 [N]: the number of each image's cluster, in the order of their first images."""
    if clusters is None:
        return np.arange(count, dtype=np.int64)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def biased(
    labels: Labels,
    among: Indices,
    settings: DataSettings,
    *,
    what: str,
    minority_ratio: float,
    total: int | None = None,
    draw: bool = True,
) -> Indices:
    """A biased subset of the images at ``among``, int64, as :func:`aimfair.data.biased_subset.biased_indices` takes it.

    Args:
        among: int64, ascending.
        what: name of the set, for errors.
        minority_ratio, total: as there.
        draw: at random by ``data.seed``; False: the first of each group.

    Raises:
        AimfairError: a group has too few images.
    """
    chosen = biased_indices(
        labels.target.values[among],
        labels.protected.values[among],
        settings.majority,
        minority_ratio,
        total,
        settings.seed if draw else None,
        names=(labels.target.names, labels.protected.names),
        what=what,
    )
    return among[chosen]
