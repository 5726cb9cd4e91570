"""Intervals against closed forms and other implementations; what pairing buys."""

import numpy as np
import pytest
from scipy import stats

from aimfair.evaluation import intervals, metrics
from aimfair.evaluation.intervals import PairedPredictions
from aimfair.evaluation.metrics import count_predictions


def multinomial_bootstrap(
    counts: np.ndarray, replicates: int, confidence: float, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """The bootstrap of images of one model, each its own cluster, from their counts [A, Y, K] alone."""
    rows = np.asarray(counts, dtype=np.float64).reshape(-1, counts.shape[2])
    drawn = np.zeros((replicates, *rows.shape))
    for group, row in enumerate(rows):
        if row.sum() > 0:
            drawn[:, group] = generator.multinomial(round(row.sum()), row / row.sum(), size=replicates)
    tables = np.ascontiguousarray(drawn.transpose(1, 2, 0)).reshape(*counts.shape, replicates)
    return {
        metric: intervals.bias_corrected(of(tables), of(rows.reshape(counts.shape)), confidence)
        for metric, of in metrics.METRICS.items()
    }


def resampled(predictions: PairedPredictions, replicates: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(intervals.resample(predictions, replicates, np.random.default_rng(seed))), axis=-1)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (450, 500)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_is_scipys(successes: int, trials: int, confidence: float) -> None:
    oracle = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert intervals.wilson(successes, trials, confidence) == pytest.approx([oracle.low, oracle.high], abs=1e-12)


def test_wilson_of_no_images_is_undefined() -> None:
    assert np.isnan(intervals.wilson([0, 1], [0, 2], 0.95)).tolist() == [[True, True], [False, False]]


def test_student_t_is_scipys() -> None:
    values = np.array([0.1, 0.2, 0.4, 0.35])
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert intervals.student_t(values, 0.9) == pytest.approx([oracle.low, oracle.high])
    assert np.isnan(intervals.student_t(values[:1], 0.9)).all()


def test_student_t_of_two_seeds_stays_within_what_differences_of_shares_can_be() -> None:
    values = np.array([-0.55, -0.45])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert low < -1 < high < 1
    assert intervals.student_t(values, 0.95) == pytest.approx([-1, high])
    assert intervals.student_t(-values, 0.95) == pytest.approx([-high, 1])


def test_replicates_keep_the_groups_and_centre_on_the_counts() -> None:
    generator = np.random.default_rng(0)
    target, protected = generator.integers(3, size=600), generator.integers(2, size=600)
    predicted = np.where(generator.random((2, 600)) < 0.7, target, generator.integers(3, size=(2, 600)))
    draws = resampled(PairedPredictions.of(target, protected, predicted, 3, 2), 2000)
    counts = np.stack([count_predictions(target, protected, one, 3, 2) for one in predicted], axis=-1)
    assert (draws.sum(axis=2) == counts.sum(axis=2)[..., None]).all()
    sizes = counts.sum(axis=2, keepdims=True)
    error = np.sqrt(counts / sizes * (1 - counts / sizes) * sizes / 2000)
    assert (np.abs(draws.mean(axis=-1) - counts) <= 5 * error + 1e-9).all()
    spread = np.sqrt(counts / sizes * (1 - counts / sizes) * sizes)
    assert draws.std(axis=-1) == pytest.approx(spread, rel=0.15, abs=0.05)


def test_images_of_one_original_are_drawn_together() -> None:
    """Every original twice: half the information, so the standard error is that of half as many images."""
    generator = np.random.default_rng(0)
    target, protected = generator.integers(2, size=400), generator.integers(2, size=400)
    predicted = np.where(generator.random(400) < 0.8, target, 1 - target)
    twice = [np.repeat(array, 2) for array in (target, protected, predicted)]
    ids = [str(number) for number in np.repeat(np.arange(400), 2)]

    def standard_error(target, protected, predicted, ids=None) -> float:
        draws = resampled(PairedPredictions.of(target, protected, predicted[None], 2, 2, ids), 4000)
        return float(metrics.accuracy(draws).std())

    assert standard_error(*twice, ids) == pytest.approx(standard_error(target, protected, predicted), rel=0.05)
    assert standard_error(*twice) == pytest.approx(standard_error(target, protected, predicted) / 2**0.5, rel=0.05)


def test_clusters_of_unequal_sizes_vary_as_much_as_clusters_do() -> None:
    """The linearised standard error of a mean over clusters; few of them have their numbers of images in common."""
    generator = np.random.default_rng(0)
    sizes, skill = generator.integers(1, 40, size=200), np.clip(generator.normal(0.8, 0.15, size=200), 0, 1)
    ids = np.repeat(np.arange(200), sizes)
    target = generator.integers(2, size=len(ids))
    right = generator.random(len(ids)) < skill[ids]
    protected = generator.integers(2, size=200)[ids]
    predicted = np.where(right, target, 1 - target)[None]
    draws = resampled(PairedPredictions.of(target, protected, predicted, 2, 2, ids.astype(str).tolist()), 4000)
    rests = np.bincount(ids, right - right.mean())
    assert metrics.accuracy(draws)[0].std() == pytest.approx(np.sqrt((rests**2).sum()) / len(ids), rel=0.06)
    sizes_of = draws.sum(axis=(0, 1, 2))[0]
    assert sizes_of.std() > 0
    assert sizes_of.mean() == pytest.approx(len(ids), rel=0.01)


@pytest.mark.parametrize("blocks", [1, 7, 100_000])
def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    sizes = np.array([3, 1, 4])
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", blocks)
    drawn, generator = intervals._draw(sizes, 50, np.random.default_rng(0)), np.random.default_rng(0)
    cell = np.repeat(np.arange(3), sizes)
    for row in drawn:
        chosen = cell[generator.integers(8, size=8, dtype=np.uint32)]
        assert row.tolist() == np.bincount(chosen, minlength=3).tolist()


def test_models_see_the_same_replicates() -> None:
    """The difference of two models that agree is 0 in every replicate; drawn apart it would not be."""
    generator = np.random.default_rng(0)
    target, protected, predicted = (generator.integers(2, size=200) for _ in range(3))
    draws = resampled(PairedPredictions.of(target, protected, np.stack([predicted, predicted]), 2, 2), 200)
    assert np.array_equal(draws[..., 0, :], draws[..., 1, :])
    assert draws[..., 0, :].std() > 0
    better = np.where(np.arange(200) % 4 == 0, target, predicted)  # right wherever the other is
    draws = resampled(PairedPredictions.of(target, protected, np.stack([predicted, better]), 2, 2), 200)
    accuracy = metrics.accuracy(draws)
    assert (accuracy[1] >= accuracy[0]).all()


def test_replicates_come_in_pieces_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    target, protected, predicted = (generator.integers(2, size=50) for _ in range(3))
    paired = PairedPredictions.of(target, protected, predicted[None], 2, 2)
    sizes = [chunk.shape[-1] for chunk in intervals.resample(paired, 1000, generator)]
    monkeypatch.setattr(intervals, "_CHUNK", 8 * 300)
    chunks = [chunk.shape[-1] for chunk in intervals.resample(paired, 1000, generator)]
    assert sizes == [1000]
    assert chunks == [300, 300, 300, 100]


def test_both_ways_to_draw_are_multinomial() -> None:
    """Few cells are drawn as binomials, many one by one: the same moments."""
    few, many = np.array([10, 30, 60]), np.array([1, 3, 1, 2, 3])
    assert few.sum() >= intervals._CELLS_PER_DRAW * len(few)
    assert many.sum() < intervals._CELLS_PER_DRAW * len(many)
    for sizes in (few, many):
        drawn, n = intervals._draw(sizes, 20_000, np.random.default_rng(0)), sizes.sum()
        assert (drawn.sum(axis=1) == n).all()
        share = sizes / n
        assert drawn.mean(axis=0) == pytest.approx(sizes, rel=0.03)
        assert np.cov(drawn.T) == pytest.approx(n * (np.diag(share) - np.outer(share, share)), abs=0.03 * n)


def test_bootstrap_of_counts_is_that_of_images() -> None:
    generator = np.random.default_rng(0)
    target, protected = generator.integers(2, size=800), generator.integers(3, size=800)
    predicted = np.where(generator.random(800) < 0.75, target, 1 - target)
    counts = count_predictions(target, protected, predicted, 2, 3)
    quick = multinomial_bootstrap(counts, 10_000, 0.9, np.random.default_rng(1))
    draws = resampled(PairedPredictions.of(target, protected, predicted[None], 2, 3), 10_000)
    assert set(quick) == set(metrics.METRICS)
    for metric, of in metrics.METRICS.items():
        slow = intervals.bias_corrected(of(draws)[0], of(counts), 0.9)
        assert quick[metric] == pytest.approx(slow, abs=0.015), metric


def test_bootstrap_of_counts_with_an_empty_group() -> None:
    counts = np.array([[[8, 2], [0, 0]], [[8, 2], [1, 9]]])
    found = multinomial_bootstrap(counts, 500, 0.95, np.random.default_rng(0))
    assert np.isnan(found["worst_group_accuracy"]).all()
    low, high = found["worst_present_group_accuracy"]
    assert 0 < low < 0.8 <= high <= 1


def test_bias_correction_is_its_formula() -> None:
    """Against a plain loop, and against the percentile interval where there is no bias to correct."""
    generator = np.random.default_rng(0)
    values, estimate = generator.normal(size=(3, 1001)), np.array([0.0, 0.4, -0.7])
    found = intervals.bias_corrected(values, estimate, 0.9)
    for row, centre, ends in zip(values, estimate, found, strict=True):
        z0 = stats.norm.ppf((row < centre).mean())
        quantiles = stats.norm.cdf(2 * z0 + stats.norm.ppf([0.05, 0.95]))
        assert ends == pytest.approx(np.quantile(row, quantiles))
    median = np.median(values, axis=1)
    assert intervals.bias_corrected(values, median, 0.9) == pytest.approx(intervals.percentile(values, 0.9))


def test_bias_correction_at_the_edge() -> None:
    level = np.full(100, 0.5)
    assert intervals.bias_corrected(level, 0.5, 0.95).tolist() == [0.5, 0.5]
    low, high = intervals.bias_corrected(level + np.arange(100) / 1000, 0.4, 0.95)
    assert (low, high) == (0.4, pytest.approx(0.5, abs=1e-3)), "the estimate is in its interval"
    level[3] = np.nan
    assert np.isnan(intervals.bias_corrected(level, 0.5, 0.95)).all()


def test_an_empty_group_stays_undefined() -> None:
    target, protected = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    draws = resampled(PairedPredictions.of(target, protected, np.array([[0, 0, 1, 0]]), 2, 2), 50)
    assert draws[0, 1].sum() == 0
    assert np.isnan(metrics.worst_group_accuracy(draws)).all()
    assert np.isnan(intervals.percentile(metrics.worst_group_accuracy(draws), 0.95)).all()


def test_the_interval_of_accuracy_covers_the_truth() -> None:
    """About as often as it says: 300 test sets of 100 images each from a model that is right in 80 percent."""
    generator = np.random.default_rng(3)
    target, protected = np.repeat([0, 1], 50), np.tile([0, 1], 50)
    covered = 0
    for _ in range(300):
        predicted = np.where(generator.random(100) < 0.8, target, 1 - target)
        draws = next(intervals.resample(PairedPredictions.of(target, protected, predicted[None], 2, 2), 400, generator))
        low, high = intervals.percentile(metrics.accuracy(draws)[0], 0.9)
        covered += low <= 0.8 <= high
    assert 0.84 <= covered / 300 <= 0.95


def test_the_interval_of_the_worst_group_covers_the_truth() -> None:
    """Uncorrected, the worst of equal groups is too low twice: 300 test sets of a model that is right in 90 percent."""
    generator = np.random.default_rng(4)
    sizes, corrected, plain = np.array([[40, 30], [30, 40]]), 0, 0
    for _ in range(300):
        right = generator.binomial(sizes, 0.9)
        counts = np.zeros((2, 2, 2))
        for y in range(2):
            counts[:, y, y], counts[:, y, 1 - y] = right[:, y], sizes[:, y] - right[:, y]
        low, high = multinomial_bootstrap(counts, 500, 0.95, generator)["worst_group_accuracy"]
        corrected += low - 1e-9 <= 0.9 <= high + 1e-9
        rates = generator.binomial(sizes, right / sizes, size=(500, 2, 2)) / sizes
        low, high = intervals.percentile(rates.min(axis=(1, 2)), 0.95)
        plain += low - 1e-9 <= 0.9 <= high + 1e-9
    assert corrected / 300 > 0.88
    assert plain / 300 < 0.85
