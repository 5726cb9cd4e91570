"""Which of a run's models is exported."""

from pathlib import Path

from aimfair.base.errors import ConfigError
from aimfair.export.model_card import Choice
from aimfair.methods import BIASED
from aimfair.run.directory import Run, model_step
from aimfair.training.history import HISTORY, History


def choose(run: Run, method: str | None = None, seed: int | None = None) -> Choice:
    """The model of ``method`` (default: ``default_method``) and ``seed`` (default: the best by validation accuracy).

    Test images play no part; ties go to the first seed.

    Args:
        method: name of a method, or "biased" for the model before any method.

    Raises:
        ConfigError: the run has no such method or seed, or no validation accuracy to choose a seed by.
        AimfairError: the model is not finished, or out of date.
    """
    config = run.config
    method = config.default_method if method is None else method
    if method != BIASED and method not in config.methods:
        raise ConfigError(f"--method {method}: expected one of {', '.join((BIASED, *config.methods))}")
    if seed is not None and seed not in config.seeds:
        raise ConfigError(f"--seed {seed}: expected one of {', '.join(map(str, config.seeds))}")
    folders = {one: run.model(one, method) for one in config.seeds}
    accuracies = {one: _validation_accuracy(folder) for one, folder in folders.items()}
    if seed is not None:
        reason = "as requested"
    elif len(config.seeds) == 1:
        seed, reason = config.seeds[0], "the only one"
    else:
        known = {one: value for one, value in accuracies.items() if value is not None}
        if len(known) < len(accuracies):
            lacking = next(one for one in accuracies if one not in known)
            raise ConfigError(f"{folders[lacking] / HISTORY}: no validation accuracy to choose a seed by; give --seed")
        seed = max(known, key=lambda one: (known[one], -config.seeds.index(one)))
        reason = f"the best of {len(config.seeds)} by validation accuracy, without test images"
    run.digest_of(model_step(seed, method))
    return Choice(method, seed, folders[seed], reason, accuracies[seed])


def _validation_accuracy(folder: Path) -> float | None:
    if (history := History.load(folder)) is None:
        return None
    return next((epoch.validation_accuracy for epoch in history.epochs if epoch.epoch == history.kept_epoch), None)
