"""Numbers in words: formats, verdicts, and the sentences that the intervals support."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aimfair.evaluation.flips import Flips
from aimfair.evaluation.metrics import HIGHER_IS_BETTER
from aimfair.evaluation.results import Difference, Interval, Results
from aimfair.methods import BIASED

Verdict = Literal["better", "worse", "no clear change", "too few images", "undefined"]

_NAMED = 4
"""A sentence lists at most this many methods."""

_NO_WIDTH = 1e-12
"""Narrower intervals are those of equal numbers, up to rounding."""

_NONE, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "worst_group_accuracy": "Worst-group accuracy",
    "worst_present_group_accuracy": "Worst group with test images",
    "group_std": "Spread of groups (STD)",
    "eo_mean": "Equalized odds (mean)",
    "eo_max": "Equalized odds (max)",
    "eo_ratio": "Equalized odds (ratio)",
    "equal_opportunity": "Equal opportunity",
    "demographic_parity": "Demographic parity",
}

SCORE_LABELS = {"auroc": "AUROC", "calibration_error": "Calibration error", "brier": "Brier score"}


def lower_label(metric: str) -> str:
    """The label of a metric within a sentence or on an axis."""
    return LABELS[metric][0].lower() + LABELS[metric][1:]


def percent(value: float, digits: int = 1, unit: str = "%") -> str:
    """A share, for example 85.2%; a dash where undefined."""
    return _NONE if math.isnan(value) else f"{100 * value:.{digits}f}{unit}"


def spread(mean: float, std: float, unit: str = "%") -> str:
    """Mean and standard deviation over the seeds, for example "85.2% ± 1.3"; one seed has no deviation."""
    deviation = "" if math.isnan(mean) or math.isnan(std) else f" ± {percent(std, unit='')}"
    return percent(mean, unit=unit) + deviation


def percents(interval: Interval) -> str:
    """An interval of shares, for example "81.9% to 96.4%"; nothing where undefined."""
    return "" if any(map(math.isnan, interval)) else f"{percent(interval[0])} to {percent(interval[1])}"


def points(value: float) -> str:
    """A difference of shares, for example +31.3."""
    return _NONE if math.isnan(value) else f"{100 * value:+.1f}".replace("-", _MINUS)


def between(interval: Interval) -> str:
    """An interval of differences in points, for example "+27.1 to +35.0"."""
    return "undefined" if any(map(math.isnan, interval)) else f"{points(interval[0])} to {points(interval[1])}"


def listing(names: Sequence[str]) -> str:
    """For example "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def worst_metric(results: Results) -> str:
    """Worst-group accuracy; with empty groups, that of the non-empty ones."""
    return "worst_present_group_accuracy" if results.empty else "worst_group_accuracy"


def empty_groups(results: Results) -> str:
    """For example "1 of 4 groups has no test images"."""
    return f"{results.empty} of {len(results.groups)} groups {'has' if results.empty == 1 else 'have'} no test images"


def judge(metric: str, difference: Difference, small_group: int) -> Verdict:
    """Better or worse only if every interval that is defined, over images and over seeds, lies on that side of zero.

    An interval without width carries no information and lies on no side. With a support under ``small_group`` test
    images the verdict is "too few images" instead.
    """
    intervals = [i for i in (difference.over_images, difference.over_seeds) if not any(map(math.isnan, i))]
    if math.isnan(difference.mean) or not intervals:
        return "undefined"
    up = 1 if metric in HIGHER_IS_BETTER else -1
    better = all(min(up * low, up * high) > 0 for low, high in intervals)
    worse = all(max(up * low, up * high) < 0 for low, high in intervals)
    if not (better or worse) or any(high - low < _NO_WIDTH for low, high in intervals):
        return "no clear change"
    if difference.support is not None and difference.support < small_group:
        return "too few images"
    return "better" if better else "worse"


def default_minus(results: Results, other: str, metric: str) -> Difference:
    """The default method minus ``other``."""
    if other == BIASED:
        return results.methods[results.default_method].versus[BIASED][metric]
    turned = results.methods[other].versus[results.default_method][metric]
    (image_low, image_high), (seed_low, seed_high) = turned.over_images, turned.over_seeds
    return Difference(
        mean=-turned.mean,
        over_images=(-image_high, -image_low),
        over_seeds=(-seed_high, -seed_low),
        support=turned.support,
    )


@dataclass(frozen=True)
class Comparison:
    """One metric of the default method compared with that of another."""

    other: str
    metric: str
    before: float
    after: float
    difference: Difference
    verdict: Verdict

    @classmethod
    def of(
        cls,
        metric: str,
        other: str,
        before: Mapping[str, float],
        after: Mapping[str, float],
        differences: Mapping[str, Difference],
        small_group: int,
    ) -> "Comparison":
        """From metric -> value of both methods, and metric -> difference."""
        verdict = judge(metric, differences[metric], small_group)
        return cls(other, metric, before[metric], after[metric], differences[metric], verdict)

    @property
    def label(self) -> str:
        return LABELS[self.metric]


def compare(results: Results, other: str, metric: str) -> Comparison:
    before, after = (results.methods[name].mean for name in (other, results.default_method))
    difference = {metric: default_minus(results, other, metric)}
    return Comparison.of(metric, other, before, after, difference, results.small_group)


def headline(results: Results) -> str:
    """One sentence on the worst group; with empty groups, on the worst non-empty one, and how many are empty."""
    metric = worst_metric(results)
    worst = compare(results, BIASED, metric)
    ends = f"from {percent(worst.before)} to {percent(worst.after)}"
    what, empty = "worst-group accuracy", ""
    if metric != "worst_group_accuracy":
        what = "the worst accuracy of a group with test images"
        empty = f" {empty_groups(results)}: worst-group accuracy of all is undefined."
    return {
        "better": f"{what[0].upper()}{what[1:]} rose {ends}.",
        "worse": f"{what[0].upper()}{what[1:]} fell {ends}.",
        "no clear change": f"No clear change of {what}: {ends}.",
        "too few images": f"Too few test images to judge {what}: {ends}.",
        "undefined": f"{what[0].upper()}{what[1:]} is undefined.",
    }[worst.verdict] + empty


def against_controls(results: Results) -> list[str]:
    """Sentences comparing the default method with all but the biased model, on worst-group accuracy and accuracy."""
    others = [name for name in results.methods if name not in (BIASED, results.default_method)]
    sentences = []
    worst = worst_metric(results)
    name = "worst-group accuracy" if worst == "worst_group_accuracy" else "the worst group with test images"
    for metric, what in ((worst, name), ("accuracy", "accuracy")):
        verdicts = {name: compare(results, name, metric).verdict for name in others}
        parts = [
            f"{words} {_few([name for name in others if verdicts[name] == verdict], len(others))}"
            for verdict, words in _VERDICTS.items()
            if verdict in verdicts.values()
        ]
        if parts:
            sentences.append(f"On {what}, {results.default_method} is {'; '.join(parts)}.")
    return sentences


def _few(names: Sequence[str], of: int) -> str:
    """The names, or their number; the table of comparisons lists all."""
    return listing(names) if len(names) <= _NAMED else f"{len(names)} of {of} other methods"


def flips_headline(flips: Flips, small_group: int) -> str:
    """One sentence on how often the default method changes its mind, compared with the biased model.

    Args:
        small_group: pairs below which there is no verdict.
    """
    default = flips.methods[flips.default_method]
    assert default.versus_biased is not None
    verdict = judge("flips", default.versus_biased, small_group)
    pairs = "1 pair" if flips.total == 1 else f"{flips.total:,} pairs"
    return (
        f"When {flips.protected} alone changes, {flips.default_method} changes its mind on {percent(default.mean)} of"
        f" {pairs}, the biased model on {percent(flips.methods[BIASED].mean)}: {FLIP_VERDICTS[verdict]}."
    )


def cautions(results: Results) -> list[str]:
    """Caveats to be read before the numbers."""
    one_seed = "One seed: the variance over trainings is unknown."
    return [*results.cautions, *([one_seed] if len(results.seeds) == 1 else [])]


FLIP_VERDICTS: dict[Verdict, str] = {
    "better": "it flips clearly less often",
    "no clear change": "no clear difference",
    "worse": "it flips clearly more often",
    "too few images": "too few pairs to judge",
    "undefined": "undefined",
}
_VERDICTS: dict[Verdict, str] = {
    "better": "clearly better than",
    "no clear change": "not clearly different from",
    "worse": "clearly worse than",
    "too few images": "evaluated on too few images to compare with",
    "undefined": "not comparable with",
}
