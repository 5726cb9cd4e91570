"""How far a metric would move with other test images, and with other seeds."""

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from aimfair.evaluation.counts import PairedPredictions

Values = npt.NDArray[np.float64]

_CHUNK = 4_000_000
"""Numbers held at a time while resampling; 32 MB."""


def wilson(successes: npt.ArrayLike, trials: npt.ArrayLike, confidence: float) -> Values:
    """Wilson's score interval of a share (JASA 22, 1927): [..., 2], NaN where there are no trials.

    Args:
        successes: [...], whole or, for a mean over several models, not.
        trials: [...].
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n = np.asarray(trials, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.asarray(successes, dtype=np.float64) / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(np.stack([centre - half, centre + half], axis=-1), 0, 1)


def resample(
    predictions: PairedPredictions, replicates: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.float64]]:
    """Bootstrap: as many originals of each stratum as there are, drawn with replacement, with all their images.

    Originals of which all M models say the same cannot be told apart, so a replicate is one multinomial draw per
    stratum. All models see the same images in a replicate: differences between them are paired. Group sizes stay, so
    that this is the uncertainty given them.

    Yields:
        whole counts as float64 [A, Y, K, M, R], as many R at a time as fit in memory, ``replicates`` in all.
    """
    protected_values, targets = predictions.shape
    models, strata = predictions.models, predictions.strata
    # for each stratum and each image of its originals [K * M, C]: which cells count towards class k of model m
    members = [
        [
            (np.arange(targets)[:, None, None] == said.T).reshape(targets * models, -1).astype(np.float64)
            for said in stratum.predicted.transpose(1, 0, 2)
        ]
        for stratum in strata
    ]
    widest = max(protected_values * targets * targets * models, *(len(stratum.sizes) for stratum in strata))
    step = max(1, _CHUNK // widest)
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        counts = np.zeros((protected_values * targets, targets * models, count))
        for stratum, of_images in zip(strata, members, strict=True):
            n = int(stratum.sizes.sum())
            drawn = generator.multinomial(n, stratum.sizes / n, size=count).T.astype(np.float64)
            for group, member in zip(stratum.groups, of_images, strict=True):
                counts[group] += member @ drawn
        yield counts.reshape(protected_values, targets, targets, models, count)


def percentile(values: Values, confidence: float) -> Values:
    """The percentile interval of replicates [..., R]: [..., 2]."""
    tail = (1 - confidence) / 2
    return np.moveaxis(np.quantile(values, [tail, 1 - tail], axis=-1), 0, -1)


def student_t(values: Values, confidence: float) -> Values:
    """Student's t interval of the mean of values [S], for example paired differences of S seeds: [2], NaN if S < 2."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    count = len(values)
    if count < 2:
        return np.full(2, np.nan)
    half = stdtrit(count - 1, 0.5 + confidence / 2) * values.std(ddof=1) / np.sqrt(count)
    return np.asarray(values.mean() + half * np.array([-1, 1]))
