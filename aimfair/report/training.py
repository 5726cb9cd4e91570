"""How the trainings went: charts of losses and accuracies, and times."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aimfair.methods import BIASED
from aimfair.report import charts, wording
from aimfair.training.history import History

_KINDS = ("train", "validation")


@dataclass(frozen=True)
class Panel:
    """A chart with the texts beside it: values at its edges, and at the last epoch, mean over the seeds."""

    quantity: str
    chart: Markup
    top: str
    bottom: str
    last_train: str
    last_validation: str


@dataclass(frozen=True)
class Training:
    """One method: the seeds are lines of the same panels."""

    name: str
    panels: Sequence[Panel]
    epochs: int
    kept_epochs: Sequence[int]
    skipped_steps: int


def trainings(histories: Mapping[str, Mapping[int, History]], default_method: str) -> list[Training]:
    """Of the biased model and of the default method, as far as there are histories."""
    found = []
    for name in (BIASED, default_method):
        of_seeds = [history for history in histories.get(name, {}).values() if history.epochs]
        if of_seeds:
            found.append(
                Training(
                    name,
                    [_panel(quantity, of_seeds) for quantity in ("accuracy", "loss")],
                    epochs=max(len(history.epochs) for history in of_seeds),
                    kept_epochs=[history.kept_epoch for history in of_seeds],
                    skipped_steps=sum(history.skipped_steps for history in of_seeds),
                )
            )
    return found


def mean_seconds(of_seeds: Mapping[int, History]) -> float | None:
    """Time of one training, mean over the seeds; None without any."""
    times = [sum(epoch.seconds for epoch in history.epochs) for history in of_seeds.values()]
    return sum(times) / len(times) if times else None


def _panel(quantity: str, histories: Sequence[History]) -> Panel:
    lines = [
        (kind, [float(getattr(epoch, f"{kind}_{quantity}")) for epoch in history.epochs])
        for kind in _KINDS
        for history in histories
    ]
    values = [value for _, line in lines for value in line if math.isfinite(value)]
    if quantity == "accuracy":
        top, bottom, show = 1.0, min(math.floor(min(values, default=0) * 10) / 10, 0.9), wording.percent
    else:
        top, bottom, show = _round_up(max(values, default=1.0)), 0.0, "{:.3f}".format
    last = {kind: [line[-1] for of, line in lines if of == kind] for kind in _KINDS}
    return Panel(
        quantity,
        charts.curves(lines, top, bottom),
        f"{top:.0%}" if quantity == "accuracy" else f"{top:g}",
        f"{bottom:.0%}" if quantity == "accuracy" else "0",
        *(show(sum(last[kind]) / len(last[kind])) for kind in _KINDS),
    )


def _round_up(value: float) -> float:
    """To the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if value <= factor * power * (1 + 1e-9))
