"""Confidence intervals over test images (cluster bootstrap, Wilson) and over seeds (Student's t)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from aimfair.evaluation.metrics import Counts, Integers, Values, require_in_range

_CHUNK = 4_000_000
"""Numbers held in memory while resampling; 32 MB."""

_EQUAL = 1e-12
"""Smaller differences between metrics are rounding."""

_CELLS_PER_DRAW = 7
"""One binomial draw takes about as long as drawing this many clusters one by one."""

_DRAWN_AT_ONCE = 100_000
"""Clusters that are drawn one by one in one call; they stay in the cache."""

_FEWEST = 20
"""Clusters of a stratum: n drawn out of n have (n - 1) / n of the variance."""


def wilson(successes: npt.ArrayLike, trials: npt.ArrayLike, confidence: float) -> Values:
    """Wilson's score interval of a proportion (JASA 22, 1927): [..., 2], NaN where there are no trials.

    Args:
        successes: [...]; fractional for a mean over several models.
        trials: [...].
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n = np.asarray(trials, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.asarray(successes, dtype=np.float64) / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(np.stack([centre - half, centre + half], axis=-1), 0, 1)


@dataclass(frozen=True)
class Stratum:
    """Clusters whose images lie in the same groups.

    Attributes:
        groups: int64 [J], ascending: the group a * Y + y of each image of one cluster.
        sizes: int64 [C]: clusters in each cell; within a cell all M models agree on each of the J images.
        predicted: int64 [C, J, M]: the predicted class.
    """

    groups: Integers
    sizes: Integers
    predicted: Integers


@dataclass(frozen=True)
class Pool:
    """C clusters whose images need not lie in the same groups, as too few have theirs in common.

    Attributes:
        cluster: int64 [n], the cluster of each image, in [0, C). group: int64 [n]. predicted: int64 [n, M].
    """

    cluster: Integers
    group: Integers
    predicted: Integers

    @property
    def count(self) -> int:
        """C."""
        return int(self.cluster.max()) + 1


@dataclass(frozen=True)
class PairedPredictions:
    """Predictions of M models for the same images.

    Unlike separate counts, this keeps on which images two models agree, and which images form a cluster, such as those
    of one patient. Clusters, not images, are the independent draws.

    Attributes:
        strata, pools: together a partition of the clusters.
        shape: (A, Y).
        models: M.
    """

    strata: tuple[Stratum, ...]
    pools: tuple[Pool, ...]
    shape: tuple[int, int]
    models: int

    @classmethod
    def of(
        cls,
        target: Integers,
        protected: Integers,
        predicted: Integers,
        targets: int,
        protected_values: int,
        ids: Sequence[str] | None = None,
    ) -> "PairedPredictions":
        """From int64 ``predicted`` [M, N]; the other arguments, and errors, as in :func:`count_predictions`.

        Clusters of several images rarely have their groups in common. Drawn within a stratum of few clusters, they
        would hardly vary, and intervals would be far too narrow: fewer than :data:`_FEWEST` are pooled with those
        that have images in the same groups, in whatever numbers, and if these are too few as well with all such.

        Args:
            ids: the cluster of each image; None: each image is one.
        """
        for one in predicted:
            require_in_range(target, protected, one, targets, protected_values)
        group = protected * targets + target
        numbers: dict[str, int] = {}
        cluster = np.arange(len(group)) if ids is None else np.array([numbers.setdefault(i, len(numbers)) for i in ids])
        order = np.lexsort((group, cluster))
        starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
        lengths = np.diff(starts, append=len(order))
        alike: dict[tuple[int, ...], Integers] = {}  # groups of a cluster -> the images [C, J] of all that have them
        for length in np.unique(lengths):
            images = order[starts[lengths == length, None] + np.arange(length)]
            signatures, which = np.unique(group[images], axis=0, return_inverse=True)
            members = np.split(images[np.argsort(which, kind="stable")], np.cumsum(np.bincount(which))[:-1])
            alike.update(zip(map(tuple, signatures.tolist()), members, strict=True))
        single = bool((lengths == 1).all())
        strata = [
            Stratum(np.array(groups, dtype=np.int64), *_cells(predicted[:, images], targets))
            for groups, images in sorted(alike.items())
            if single or len(images) >= _FEWEST
        ]
        few = {groups: images for groups, images in sorted(alike.items()) if not single and len(images) < _FEWEST}
        pools = [
            Pool(np.repeat(np.arange(len(images)), [len(one) for one in images]), group[flat], predicted[:, flat].T)
            for images in _pooled(few)
            for flat in [np.concatenate(images)]
        ]
        return cls(tuple(strata), tuple(pools), (protected_values, targets), len(predicted))


def _cells(predicted: Integers, classes: int) -> tuple[Integers, Integers]:
    """(sizes [C], predicted [C, J, M]) of the distinct clusters among ``predicted`` [M, clusters, J]."""
    table = predicted.transpose(1, 2, 0)
    width = table.shape[1] * table.shape[2]
    if classes**width >= 2**62:
        cells, sizes = np.unique(table, axis=0, return_counts=True)
        return sizes.astype(np.int64), cells
    places = classes ** np.arange(width - 1, -1, -1)  # a cluster is a number, which is sorted faster than rows are
    codes, sizes = np.unique(table.reshape(len(table), -1) @ places, return_counts=True)
    return sizes.astype(np.int64), (codes[:, None] // places % classes).reshape(-1, *table.shape[1:])


def _pooled(few: Mapping[tuple[int, ...], Integers]) -> Iterator[list[Integers]]:
    """The images of each cluster of a pool."""
    same: dict[frozenset[int], list[Integers]] = {}
    for groups, images in few.items():
        same.setdefault(frozenset(groups), []).extend(images)
    yield from (clusters for clusters in same.values() if len(clusters) >= _FEWEST)
    if rest := [one for clusters in same.values() if len(clusters) < _FEWEST for one in clusters]:
        yield rest


def resample(
    predictions: PairedPredictions, replicates: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.float64]]:
    """Stratified cluster bootstrap: within each stratum or pool, clusters are drawn with replacement, with all their
    images.

    Clusters of a stratum on which all M models agree are interchangeable, so a replicate is one multinomial draw per
    stratum. All models see the same images in a replicate: differences between them are paired. Group sizes are kept
    fixed, but for what pools contribute.

    Yields:
        integral counts as float64 [A, Y, K, M, R], as many R at a time as fit in memory, ``replicates`` in total.
    """
    from scipy import sparse  # type: ignore[import-untyped]

    protected_values, targets = predictions.shape
    groups, models, strata = protected_values * targets, predictions.models, predictions.strata
    # sums of whole numbers below 2^24 are exact in float32, in any order
    number = np.float32 if sum(int(stratum.sizes.sum()) for stratum in strata) < 2**24 else np.float64
    # per stratum and image of its clusters [(K - 1) * M, C]: which cells count towards class k of model m;
    # the last class is the remainder of the group
    members = [
        [
            (np.arange(targets - 1)[:, None, None] == classes.T).reshape((targets - 1) * models, -1).astype(number)
            for classes in stratum.predicted.transpose(1, 0, 2)
        ]
        for stratum in strata
    ]
    # per pool [A * Y * K * M, C]: how often each cluster counts
    pooled = []
    for pool in predictions.pools:
        entry = ((pool.group[:, None] * targets + pool.predicted) * models + np.arange(models)).ravel()
        shape = groups * targets * models, pool.count
        pooled.append(sparse.csr_array((np.ones(len(entry)), (entry, np.repeat(pool.cluster, models))), shape=shape))
    group_sizes = np.zeros(groups)
    for stratum in strata:
        np.add.at(group_sizes, stratum.groups, stratum.sizes.sum())
    widest = max(
        [groups * targets * models, *(len(stratum.sizes) for stratum in strata), *(m.shape[1] for m in pooled)]
    )
    step = max(1, _CHUNK // widest)
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        counts = np.zeros((groups, targets, models, count))
        first = counts[:, :-1].reshape(groups, (targets - 1) * models, count)
        for stratum, of_images in zip(strata, members, strict=True):
            drawn = _draw(stratum.sizes, count, generator).astype(number).T
            for group, member in zip(stratum.groups, of_images, strict=True):
                first[group] += member @ drawn
        counts[:, :-1] = first.reshape(groups, targets - 1, models, count)
        counts[:, -1] = group_sizes[:, None, None] - counts[:, :-1].sum(axis=1)
        for matrix in pooled:
            drawn = _draw(np.ones(matrix.shape[1], dtype=np.int64), count, generator).T
            counts += (matrix @ drawn.astype(np.float64)).reshape(counts.shape)
        yield counts.reshape(protected_values, targets, targets, models, count)


def replicated(
    predictions: PairedPredictions,
    functions: Mapping[str, Callable[[Counts], Values]],
    replicates: int,
    generator: np.random.Generator,
) -> dict[str, Values]:
    """Name -> the function of the counts of every replicate of :func:`resample`: [M, R]."""
    chunks = [
        {name: function(counts) for name, function in functions.items()}
        for counts in resample(predictions, replicates, generator)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks], axis=-1) for name in functions}


def _draw(sizes: Integers, count: int, generator: np.random.Generator) -> Integers:
    """``count`` multinomial draws of n = sum of ``sizes`` [C], in proportion to them: int64 [count, C]."""
    n, width = int(sizes.sum()), len(sizes)
    if n >= _CELLS_PER_DRAW * width:
        return generator.multinomial(n, sizes / n, size=count)
    cell = np.repeat(np.arange(width), sizes)  # one by one
    drawn = np.empty((count, width), dtype=np.int64)
    step = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, count, step):
        block = drawn[start : start + step]
        chosen = cell[generator.integers(n, size=(len(block), n), dtype=np.uint32)]
        chosen += width * np.arange(len(block))[:, None]
        block[:] = np.bincount(chosen.ravel(), minlength=block.size).reshape(block.shape)
    return drawn


def resampled_means(
    values: Integers, strata: Integers, replicates: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Stratified bootstrap of the means of M quantities over the same N draws: [M, R], paired within a replicate.

    Args:
        values: int64 [M, N].
        strata: int64 [N]; within each, draws are drawn with replacement.
    """
    sums = np.zeros((len(values), replicates))
    for stratum in np.unique(strata):
        cells, sizes = np.unique(values[:, strata == stratum], axis=1, return_counts=True)
        step = max(1, _CHUNK // len(sizes))
        for start in range(0, replicates, step):
            drawn = _draw(sizes.astype(np.int64), min(step, replicates - start), generator)
            sums[:, start : start + len(drawn)] += cells.astype(np.float64) @ drawn.T  # whole numbers: exact
    return np.asarray(sums / values.shape[1])


def percentile(values: Values, confidence: float) -> Values:
    """The percentile interval of replicates [..., R]: [..., 2]; for differences of two models, whose biases cancel."""
    tail = (1 - confidence) / 2
    return np.moveaxis(np.quantile(values, [tail, 1 - tail], axis=-1), 0, -1)


def bias_corrected(values: Values, estimate: npt.ArrayLike, confidence: float) -> Values:
    """The bias-corrected percentile interval (Efron, Canadian Journal of Statistics 9, 1981): [..., 2].

    The smallest of several rates is biased downwards, their largest difference upwards, and replicates add that bias
    once more to an estimate that already has it. With z0 the normal quantile of the share of replicates below the
    estimate (ties count half), the ends are the quantiles at Phi(2 z0 -+ z) instead of Phi(-+ z). The interval is
    extended to include the estimate where all replicates lie on one side of it.

    Coverage of 95 percent intervals in simulations with four groups of 30 to 200 images (without the correction in
    brackets): worst group 92 to 95 percent (90 to 98), and 85 to 93 (62 to 81) where the model is equally good in all
    groups; EO 85 to 94 (91 to 98) and STD 87 to 92 (84 to 92). Two limits of any bootstrap: where the model is equally
    good in all groups, the true EO and STD are 0 and their intervals include zero in 0 to 57 percent of cases (0). And
    a group classified entirely correctly, or entirely wrong, stays so in every replicate: with a true rate of 2 percent
    in 50 images the interval of the worst group misses it in 6 of 10 cases; Wilson's, of the group, does not.

    Args:
        values: replicates [..., R].
        estimate: [...], the metric on the test images.
    """
    from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

    centre, number = np.asarray(estimate, dtype=np.float64)[..., None], values.shape[-1]
    with np.errstate(invalid="ignore"):
        below = (values < centre - _EQUAL).mean(axis=-1) + (np.abs(values - centre) <= _EQUAL).mean(axis=-1) / 2
    z0 = ndtri(np.clip(below, 0.5 / number, 1 - 0.5 / number))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    place = ndtr(2 * z0[..., None] + np.array([-z, z])) * (number - 1)
    before = np.minimum(place.astype(np.int64), max(number - 2, 0))
    ordered = np.sort(values, axis=-1)
    left, right = (np.take_along_axis(ordered, np.minimum(at, number - 1), axis=-1) for at in (before, before + 1))
    ends = left + (right - left) * (place - before)
    ends = np.concatenate([np.minimum(ends[..., :1], centre), np.maximum(ends[..., 1:], centre)], axis=-1)
    return np.where(np.isnan(values).any(axis=-1, keepdims=True), np.nan, ends)


def student_t(values: Values, confidence: float) -> Values:
    """Student's t interval of the mean of paired differences [S] between shares, of S seeds: [2], NaN if S < 2.

    The ends are clipped to [-1, 1], which no difference between shares exceeds: two seeds, 10 points apart, give 64
    points to each side of their mean at 95 percent.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    count = len(values)
    if count < 2:
        return np.full(2, np.nan)
    half = stdtrit(count - 1, 0.5 + confidence / 2) * values.std(ddof=1) / np.sqrt(count)
    return np.asarray(np.clip(values.mean() + half * np.array([-1, 1]), -1, 1))
