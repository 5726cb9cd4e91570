"""Splits and biased subsets, drawn by ``data.seed`` from images that have labels."""

import numpy as np

from aimfair.config import DataSettings
from aimfair.data.bias import Indices, biased_indices
from aimfair.data.labels import Labels
from aimfair.seeds import generator


def stratified(labels: Labels, settings: DataSettings) -> tuple[Indices, Indices, Indices]:
    """Training, validation and test images, int64 ascending each, together all of ``labels``.

    Each group (y, a) is shuffled and cut: ``test_share`` and ``validation_share`` of it, rounded down, go to the test
    and the validation images, so that a group of few images may have none there.
    """
    parts: tuple[list[Indices], list[Indices], list[Indices]] = ([], [], [])
    for y in range(len(labels.target.names)):
        for a in range(len(labels.protected.names)):
            members = np.flatnonzero((labels.target.values == y) & (labels.protected.values == a))
            members = generator(settings.seed, "split", y, a).permutation(members)
            # The epsilon is for products that should be whole and are not, by the last bit: 0.29 * 100.
            test, validation = (
                int(share * len(members) + 1e-9) for share in (settings.test_share, settings.validation_share)
            )
            cuts = np.split(members, [len(members) - test - validation, len(members) - test])
            for part, cut in zip(parts, cuts, strict=True):
                part.append(cut)
    train, validation_images, test_images = (np.sort(np.concatenate(part)) for part in parts)
    return train, validation_images, test_images


def biased(
    labels: Labels,
    among: Indices,
    settings: DataSettings,
    *,
    what: str,
    bias: float,
    total: int | None = None,
    draw: bool = True,
) -> Indices:
    """A biased subset of the images at ``among``, int64, as :func:`aimfair.data.bias.biased_indices` takes it.

    Args:
        among: int64, ascending.
        what: name of the set, for errors.
        bias, total: as there.
        draw: by ``data.seed``; else the first of each group.

    Raises:
        AimfairError: a group has too few images.
    """
    chosen = biased_indices(
        labels.target.values[among],
        labels.protected.values[among],
        settings.majority,
        bias,
        total,
        settings.seed if draw else None,
        names=(labels.target.names, labels.protected.names),
        what=what,
    )
    return among[chosen]
