"""Numbers in words: what the figures allow to be said, and nothing beyond."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aimfair.config import BIASED
from aimfair.evaluation.fairness import HIGHER_IS_BETTER
from aimfair.evaluation.results import Difference, Interval, Results

Verdict = Literal["better", "worse", "no clear change", "undefined"]

_NONE, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "worst_group_accuracy": "Worst-group accuracy",
    "group_std": "Spread of groups (STD)",
    "eo_mean": "Equalized odds (mean)",
    "eo_max": "Equalized odds (max)",
    "eo_ratio": "Equalized odds (ratio)",
    "equal_opportunity": "Equal opportunity",
    "demographic_parity": "Demographic parity",
}


def percent(value: float, digits: int = 1) -> str:
    """A share, for example 85.2%; a dash where undefined."""
    return _NONE if math.isnan(value) else f"{100 * value:.{digits}f}%"


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


def judge(metric: str, difference: Difference) -> Verdict:
    """Better or worse only if every interval that is defined, over images and over seeds, lies on that side of zero."""
    intervals = [i for i in (difference.over_images, difference.over_seeds) if not any(map(math.isnan, i))]
    if math.isnan(difference.mean) or not intervals:
        return "undefined"
    up = 1 if metric in HIGHER_IS_BETTER else -1
    if all(min(up * low, up * high) > 0 for low, high in intervals):
        return "better"
    if all(max(up * low, up * high) < 0 for low, high in intervals):
        return "worse"
    return "no clear change"


def default_minus(results: Results, other: str, metric: str) -> Difference:
    """The default method minus ``other``."""
    if other == BIASED:
        return results.methods[results.default_method].versus[BIASED][metric]
    turned = results.methods[other].versus[results.default_method][metric]
    (image_low, image_high), (seed_low, seed_high) = turned.over_images, turned.over_seeds
    return Difference(mean=-turned.mean, over_images=(-image_high, -image_low), over_seeds=(-seed_high, -seed_low))


@dataclass(frozen=True)
class Comparison:
    """One metric of the default method beside that of another."""

    other: str
    metric: str
    before: float
    after: float
    difference: Difference
    verdict: Verdict

    @property
    def label(self) -> str:
        return LABELS[self.metric]


def compare(results: Results, other: str, metric: str) -> Comparison:
    difference = default_minus(results, other, metric)
    before, after = (results.methods[name].mean[metric] for name in (other, results.default_method))
    return Comparison(other, metric, before, after, difference, judge(metric, difference))


def headline(results: Results) -> str:
    """One sentence on the worst group."""
    worst = compare(results, BIASED, "worst_group_accuracy")
    ends = f"from {percent(worst.before)} to {percent(worst.after)}"
    return {
        "better": f"Worst-group accuracy rose {ends}.",
        "worse": f"Worst-group accuracy fell {ends}.",
        "no clear change": f"No clear change of worst-group accuracy: {ends}.",
        "undefined": "Worst-group accuracy is undefined: a group has no test images.",
    }[worst.verdict]


def against_controls(results: Results) -> list[str]:
    """Sentences on the default method beside all but the biased model: on worst-group accuracy and on accuracy."""
    others = [name for name in results.methods if name not in (BIASED, results.default_method)]
    sentences = []
    for metric, what in (("worst_group_accuracy", "worst-group accuracy"), ("accuracy", "accuracy")):
        verdicts = {name: compare(results, name, metric).verdict for name in others}
        said = [
            f"{words} {listing([name for name in others if verdicts[name] == verdict])}"
            for verdict, words in _BESIDE.items()
            if verdict in verdicts.values()
        ]
        if said:
            sentences.append(f"On {what}, {results.default_method} is {'; '.join(said)}.")
    return sentences


def cautions(results: Results) -> list[str]:
    """What the reader must know before the numbers."""
    one_seed = "One seed: how much the result would change with another training is unknown."
    return [*results.cautions, *([one_seed] if len(results.seeds) == 1 else [])]


_BESIDE: dict[Verdict, str] = {
    "better": "clearly better than",
    "no clear change": "not clearly different from",
    "worse": "clearly worse than",
    "undefined": "not comparable with",
}
