"""Spearman's rank correlation of what was predicted of blocks and what was measured, with a bootstrap interval."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """
    Attributes:
        rho: Spearman's coefficient of the means over the seeds; NaN where one side is the same for all blocks.
        low, high: percentile interval; NaN where it is undefined.
        blocks: n.
    """

    rho: float
    low: float
    high: float
    blocks: int

    @property
    def sentence(self) -> str:
        """What may be said."""
        if math.isnan(self.rho + self.low):
            return "Undefined: the blocks cannot be ranked."
        if self.low > 0:
            return "Sensitivity agrees with the measured effect."
        if self.high < 0:
            return "Sensitivity contradicts the measured effect."
        return "No evidence that sensitivity agrees with the measured effect, nor that it does not."

    def as_dict(self) -> dict[str, float | int | None]:
        values = {"rho": self.rho, "low": self.low, "high": self.high}
        return {**{key: None if math.isnan(value) else value for key, value in values.items()}, "n": self.blocks}

    def __str__(self) -> str:
        if math.isnan(self.rho):
            return "rank correlation undefined"
        interval = "" if math.isnan(self.low) else f" ({self.low:+.2f} to {self.high:+.2f})"
        return f"rank correlation {self.rho:+.2f}{interval}".replace("-", "\N{MINUS SIGN}")


def agreement(
    predicted: Values, measured: Values, confidence: float, replicates: int, random: np.random.Generator
) -> Agreement:
    """Of [blocks, seeds] predictions and measurements, paired.

    A replicate draws blocks and, independently, seeds with replacement, and correlates the means over its seeds.
    Replicates in which one side is constant have no correlation and are left out; if they are more than a tenth there
    is no interval.
    """
    blocks, seeds = measured.shape
    rho = float(spearman(predicted.mean(axis=1)[None], measured.mean(axis=1)[None])[0])
    rows = random.integers(blocks, size=(replicates, blocks, 1))
    columns = random.integers(seeds, size=(replicates, 1, seeds))
    found = spearman(predicted[rows, columns].mean(axis=2), measured[rows, columns].mean(axis=2))
    found = found[~np.isnan(found)]
    if math.isnan(rho) or len(found) < 0.9 * replicates:
        return Agreement(rho, math.nan, math.nan, blocks)
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Agreement(rho, float(low), float(high), blocks)


def spearman(one: Values, other: Values) -> Values:
    """Spearman's coefficient along the last axis of [R, n]; NaN where one side is constant or holds NaN."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    a, b = (rankdata(side, axis=-1) for side in (one, other))
    a, b = (side - side.mean(axis=-1, keepdims=True) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1)))
