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
    return {"rows": rows, "audited": any(row["regret"] for row in rows), "settings": config.tune}


def _row(name: str, tuning: Tuning, config: Config) -> dict[str, Any]:
    chosen = next(one for one in tuning.trials if one.number == tuning.chosen)
    states = [one.state for one in tuning.trials]
    return {
        "name": name,
        "default": name == config.default_method,
        "finished": states.count("complete"),
        "pruned": states.count("pruned"),
        "failed": states.count("failed"),
        "chosen": _in_words(config, name, chosen.values),
        "given": _in_words(config, name, {}),
        "is_given": not chosen.number,
        "worst": chosen.worst,
        "accuracy": chosen.accuracy,
        "chart": _chart(tuning.trials, chosen),
        "regret": _regret(tuning.trials, chosen),
    }


def _chart(trials: Sequence[Trial], chosen: Trial) -> str:
    finished = complete(trials)
    points = [
        charts.Point(
            one.accuracy,
            one.worst,
            "chosen" if one is chosen else "as given" if not one.number else "",
            "after" if one is chosen else "train" if not one.number else "before",
        )
        for one in sorted(finished, key=lambda one: (one is chosen, not one.number))  # those two on top
    ]
    places = {(point.x, point.y): i for i, point in enumerate(points)}
    joined = [places[one.accuracy, one.worst] for one in front(trials)]
    return charts.scatter(
        points, x_name="accuracy, real validation", y_name="worst group, held-out synthetic", joined=joined
    )


def _in_words(config: Config, name: str, values: Values) -> str:
    """What is searched for the method, with these values in place of the given ones."""
    method, space = config.methods[name], config.space(name)
    training = method.training_settings(config.train, config.finetune)
    all_values = {**training.model_dump(), **method.model_dump(exclude_none=True), **values}
    parts = []
    if space.lr:
        parts.append(f"lr {all_values['lr']:.2g}")
    if space.epochs:
        parts.append(f"{all_values['epochs']} epochs")
    if space.density and "density" in all_values:
        parts.append(f"density {wording.percent(all_values['density'])}")
    if space.rules:
        parts.append(f"{all_values['rule']} of {all_values['criterion']}".replace("_", " "))
    return ", ".join(parts)


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
