"""The section of the report on counterfactual pairs: how often each method changes its mind, and a few pairs."""

from collections.abc import Sequence
from typing import Any

from aimfair.evaluation.flips import Flips
from aimfair.methods import BIASED
from aimfair.report import charts, wording
from aimfair.report.material import Pair


def pairs_section(flips: Flips, samples: Sequence[Pair], small_group: int) -> dict[str, Any]:
    """A row for each method, the biased model first; samples by class.

    Args:
        small_group: pairs below which there is no verdict.
    """
    scale = charts.scale_from_zero([end for one in flips.methods.values() for end in one.interval])
    rows = [
        {
            "name": name,
            "result": one,
            "chart": charts.dots_with_intervals(
                [charts.Mark(one.mean, *one.interval, "before" if name == BIASED else "after")], scale
            ),
            "verdict": wording.judge("flips", one.versus_biased, small_group) if one.versus_biased else None,
        }
        for name, one in flips.methods.items()
    ]
    return {
        "flips": flips,
        "sentence": wording.flips_headline(flips, small_group),
        "rows": rows,
        "edited": any(pair.source is not None for pair in samples),
        "axis": charts.axis(scale),
        "samples": [
            (target, [_sample(pair, flips) for pair in samples if pair.y == y])
            for y, target in enumerate(flips.target_names)
        ],
    }


def _sample(pair: Pair, flips: Flips) -> dict[str, Any]:
    """rows: (method, for each value the predicted class and whether it is right, whether the pair flips)."""
    return {
        "text": pair.text,
        "source": pair.source,
        "images": list(zip(flips.protected_names, pair.images, strict=True)),
        "rows": [
            (name, [(flips.target_names[k], k == pair.y) for k in predicted], len(set(predicted)) > 1)
            for name, predicted in pair.predicted.items()
        ],
    }
