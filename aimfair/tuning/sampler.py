"""Optuna's sampler, asked for one trial at a time.

The trials of a run are files of their own; a study is built from them in memory whenever the next one is asked for.
Optuna's journal cannot be appended to once a killed process has left half a line in it.
"""

from collections.abc import Sequence
from typing import Any

from aimfair.base.libraries import optional
from aimfair.base.seeds import derive_seed
from aimfair.tuning.space import Space, Values
from aimfair.tuning.trials import Trial

_STARTUP = 8
"""Random trials, the first included, before the sampler models the objectives."""


def require_optuna() -> None:
    """Raises AimfairError: it is not installed, or it cannot be imported."""
    with optional("tune", "'aimfair[tune]'"):
        import optuna  # noqa: F401


def propose(space: Space, given: Values, earlier: Sequence[Trial], *purpose: int | str) -> dict[str, Any]:
    """The values of the next trial: a function of the arguments alone.

    Args:
        given: settings of the method, for trials that do not set them.
        purpose: that the random choices of this trial are derived from.
    """
    with optional("tune", "'aimfair[tune]'"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {}
    if space.lr:
        distributions["lr"] = optuna.distributions.FloatDistribution(*space.lr, log=True)
    if space.epochs:
        distributions["epochs"] = optuna.distributions.IntDistribution(*space.epochs, log=True)
    if space.density:
        distributions["density"] = optuna.distributions.FloatDistribution(*space.density, log=True)
    if space.rules:
        distributions["rule"] = optuna.distributions.CategoricalDistribution([" ".join(pair) for pair in space.rules])

    sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP, seed=derive_seed(*purpose) % 2**32)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for trial in earlier:
        parameters = _inside(space, {**given, **trial.values})
        known = {name: distributions[name] for name in parameters}
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=known, values=_objectives(trial)))
    values = dict(study.ask(distributions).params)
    if space.rules:
        values["rule"], values["criterion"] = values["rule"].split()
    return values


def _inside(space: Space, values: Values) -> dict[str, Any]:
    """The parameters of a trial that lie in the space: what a method is given need not."""
    ranges = {"lr": space.lr, "epochs": space.epochs, "density": space.density}
    found = {
        name: values[name]
        for name, ends in ranges.items()
        if ends and values.get(name) is not None and ends[0] <= values[name] <= ends[1]
    }
    if space.rules and (pair := (values["rule"], values["criterion"])) in space.rules:
        found["rule"] = " ".join(pair)
    return found


def _objectives(trial: Trial) -> tuple[float, float]:
    """Of a pruned trial those when it was stopped; of a failed one the lowest there are."""
    if trial.state == "complete":
        return trial.worst, trial.accuracy
    last = trial.stopped.curve[-1] if trial.stopped else None
    return (last.worst, last.accuracy) if last else (0.0, 0.0)
