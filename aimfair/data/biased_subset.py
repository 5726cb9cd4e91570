"""Biased subsets: one value of the protected attribute dominates each target class.

Arrays over groups are [Y, A]: target class y, then protected value a.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.seeds import generator

Indices = npt.NDArray[np.int64]

_SHOWN = 5


def check_majority(majority: Sequence[int], targets: int, protected_values: int) -> None:
    """Checks that ``data.majority`` names one of A protected values for each of Y target classes.

    Raises:
        ConfigError: it does not.
    """
    if len(majority) != targets:
        raise ConfigError(
            f"data.majority: found {len(majority)} values, expected one for each of {targets} target classes"
        )
    for y, a in enumerate(majority):
        if not 0 <= a < protected_values:
            raise ConfigError(
                f"data.majority: found {a} for target class {y}, expected a protected value from 0 to"
                f" {protected_values - 1}"
            )


def group_sizes(majority: Sequence[int], protected_values: int, minority_ratio: float, total: int) -> Indices:
    """Images of each group in a biased set.

    Args:
        majority: for each of the Y target classes the protected value that dominates it.
        protected_values: A.
        minority_ratio: size of a minority group over that of a majority group, in (0, 1]; 1 is balanced.
        total: number of images in all groups together.

    Returns:
        int64 [Y, A] with sum ``total``; rounded from the exact shares by largest remainders, ties in the order of
        groups. For example [[1000, 9000], [9000, 1000]] for 20,000 images, majority
        [1, 0] and ratio 1/9.

    Raises:
        ConfigError: ``majority`` names a value that does not exist.
    """
    exact = total * _shares(majority, protected_values, minority_ratio)
    sizes = np.floor(exact).astype(np.int64)
    # Rounded so that equal remainders stay equal despite floating-point rounding.
    remainders = np.round(exact - sizes, 9)
    neediest = np.argsort(-remainders, axis=None, kind="stable")
    sizes.flat[neediest[: total - int(sizes.sum())]] += 1
    return sizes


def largest_total(majority: Sequence[int], available: Indices, minority_ratio: float) -> int:
    """Size of the largest biased set that ``available`` int64 [Y, A] images of each group allow."""
    # If the exact shares fit, so do the rounded ones, which are at most the next integer. The epsilon is for quotients
    # that should be integers but are off by floating-point rounding.
    return int(np.floor((available / _shares(majority, available.shape[1], minority_ratio)).min() + 1e-9))


def biased_indices(
    target: Indices,
    protected: Indices,
    majority: Sequence[int],
    minority_ratio: float,
    total: int | None,
    seed: int | None,
    *,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
    what: str = "biased set",
) -> Indices:
    """A biased subset of images.

    Args:
        target, protected: int64 [N], class y and protected value a of each image.
        majority, minority_ratio: as in :func:`group_sizes`.
        total: size of the subset; None: as large as the groups allow.
        seed: draws the images of each group; None: the first of each group, in the order given.
        names: of the Y classes and of the A values; None: unnamed, and A is one more than the largest value in
            ``protected``.
        what: name of the set, for errors.

    Returns:
        int64 [total], ascending.

    Raises:
        AimfairError: groups have too few images.
        ConfigError: ``majority`` does not fit the labels.
    """
    values = int(protected.max(initial=0)) + 1 if names is None else len(names[1])
    check_majority(majority, max(int(target.max(initial=0)) + 1, len(majority)), values)
    available = np.zeros((len(majority), values), dtype=np.int64)
    np.add.at(available, (target, protected), 1)
    most = largest_total(majority, available, minority_ratio)
    # If a group has no images, the largest set is empty: every group needs at least one.
    wanted = group_sizes(majority, values, minority_ratio, most if total is None else total)
    least = np.maximum(wanted, 1) if total is None else wanted
    if (available < least).any():
        raise AimfairError(_lack(available, least, most, minority_ratio, total, names, what))
    chosen = []
    for (y, a), size in np.ndenumerate(wanted):
        members = np.flatnonzero((target == y) & (protected == a))
        if seed is not None:
            members = generator(seed, "biased subset", y, a).permutation(members)
        chosen.append(members[:size])
    return np.sort(np.concatenate(chosen))


def _lack(
    available: Indices,
    least: Indices,
    most: int,
    minority_ratio: float,
    total: int | None,
    names: tuple[Sequence[str], Sequence[str]] | None,
    what: str,
) -> str:
    """The message about groups, [Y, A], with fewer images than needed."""
    lacking = []
    for y, a in np.argwhere(available < least):
        name = "" if names is None else f", {names[0][y]!r} by {names[1][a]!r},"
        lacking.append(f"group (y={y}, a={a}){name} has {available[y, a]} images and needs {least[y, a]}")
    more = f"; and {len(lacking) - _SHOWN} more groups" if len(lacking) > _SHOWN else ""
    size = "" if total is None else f" of {total}"
    if most:
        advice = f"{most} images are possible (data.train_images, data.minority_ratio, data.majority)"
    else:
        advice = "a group without images makes it impossible: merge protected values or add images"
    return f"{what}{size} with minority ratio {minority_ratio:.3g}: {'; '.join(lacking[:_SHOWN])}{more}; {advice}"


def _shares(majority: Sequence[int], protected_values: int, minority_ratio: float) -> npt.NDArray[np.float64]:
    """float64 [Y, A] with sum 1: the share of each group in a biased set."""
    check_majority(majority, len(majority), protected_values)
    weights = np.full((len(majority), protected_values), minority_ratio)
    weights[np.arange(len(majority)), list(majority)] = 1.0
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares
