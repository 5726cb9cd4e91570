"""The section of the report on tuning: every trial, the front, the choice, and what choosing without labels costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aimfair.config import Config
from aimfair.evaluation.over_seeds import std
from aimfair.report import charts, wording
from aimfair.tuning.choice import complete, front, regret
from aimfair.tuning.space import Values
from aimfair.tuning.trials import Trial

_NONE = "\N{EN DASH}"

_FAR = 0.1
"""Below the chosen trial, in either objective, where the chart leaves a trial out."""


@dataclass(frozen=True)
class Tuning:
    """The trials of a method, and the number of the chosen one."""

    trials: Sequence[Trial]
    chosen: int


def tuning_section(tuned: Mapping[str, Tuning], config: Config) -> dict[str, Any] | None:
    """A row and a chart for each method; None if none was tuned.

    Args:
        config: with the settings that methods were given.
    """
    if not tuned:
        return None
    rows = [_row(name, tuning, config) for name, tuning in tuned.items()]
    return {
        "rows": rows,
        "misled": wording.listing([name for name in tuned if config.methods[name].trains_on_real]),
        "audited": any(row["regret"] for row in rows),
        "settings": config.tune,
    }


def _row(name: str, tuning: Tuning, config: Config) -> dict[str, Any]:
    chosen = next(one for one in tuning.trials if one.number == tuning.chosen)
    states = [one.state for one in tuning.trials]
    chart, left_out = _chart(tuning.trials, chosen)
    return {
        "name": name,
        "default": name == config.default_method,
        "states": " / ".join(str(states.count(state)) for state in ("complete", "pruned", "failed")),
        "settings": list(zip(_in_words(config, name, chosen.values), _in_words(config, name, {}), strict=True)),
        "worst": chosen.worst,
        "accuracy": chosen.accuracy,
        "chart": chart,
        "left_out": left_out,
        "regret": _regret(tuning.trials, chosen),
    }


def _chart(trials: Sequence[Trial], chosen: Trial) -> tuple[str, int]:
    """The chart of the finished trials, and how many lie so far below that they would squeeze the others together."""
    finished = complete(trials)
    near = [one for one in finished if min(one.worst - chosen.worst, one.accuracy - chosen.accuracy) >= -_FAR]
    near.sort(key=lambda one: (one is chosen, not one.number))  # those two on top
    points = [
        charts.Point(
            one.accuracy,
            one.worst,
            ", ".join(["chosen"] * (one is chosen) + ["as given"] * (not one.number)),
            "after" if one is chosen else "train" if not one.number else "before",
        )
        for one in near
    ]
    joined = [near.index(one) for one in front(trials) if one in near]
    chart = charts.scatter(
        points, x_name="accuracy, real validation", y_name="worst group, held-out synthetic", joined=joined
    )
    return chart, len(finished) - len(near)


def _in_words(config: Config, name: str, values: Values) -> list[str]:
    """Learning rate, epochs, density and rule with these values in place of the given ones; a dash: not searched."""
    method, space = config.methods[name], config.space(name)
    training = method.training_settings(config.train, config.finetune)
    found = {**training.model_dump(), **method.model_dump(exclude_none=True), **values}
    return [
        f"{found['lr']:.2g}" if space.lr else _NONE,
        str(found["epochs"]) if space.epochs else _NONE,
        wording.percent(found["density"]) if space.density and "density" in found else _NONE,
        f"{found['rule']}, {found['criterion']}".replace("_", " ") if space.rules else _NONE,
    ]


def _regret(trials: Sequence[Trial], chosen: Trial) -> dict[str, str] | None:
    """Worst-group accuracy on real test images, mean ± standard deviation over the seeds, and differences in points."""
    found = regret(trials, chosen)
    if found is None:
        return None
    lost = np.array(found.by_labels) - np.array(found.chosen)
    return {
        "chosen": _spread(found.chosen),
        "given": _spread(found.given) if found.given else wording.percent(float("nan")),
        "by_labels": _spread(found.by_labels),
        "best": _spread(found.best),
        "regret": wording.points(float(lost.mean())) + ("" if len(lost) < 2 else f" ± {100 * float(std(lost)):.1f}"),
    }


def _spread(values: Sequence[float]) -> str:
    return wording.spread(float(np.mean(values)), float(std(values)))
