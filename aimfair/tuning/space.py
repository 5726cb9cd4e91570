"""What is searched for a method, and the method with what was found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from aimfair.base.settings import Problem
from aimfair.methods import AnyMethod, MethodSettings, Tune, read_method
from aimfair.selective.choices import SIZES, Criterion, Rule
from aimfair.training.settings import KEPT_FOR, OptimizerSettings
from aimfair.tuning.settings import Parameter, Range, TuneSettings

Values = Mapping[str, Any]
"""Settings of a method, by key."""

Choices = tuple[tuple[Rule, Criterion], ...]


@dataclass(frozen=True)
class Space:
    """The values that trials may take; None or empty: the setting is not searched.

    Attributes:
        lr, density: ends of a logarithmic scale. epochs: the same, of whole numbers.
        rules: of selection with their criteria.
    """

    lr: Range | None = None
    epochs: tuple[int, int] | None = None
    density: Range | None = None
    rules: Choices = ()


def space_of(name: str, method: MethodSettings, given: OptimizerSettings, statistics: str, tune: TuneSettings) -> Space:
    """The space of the method called ``name``.

    Args:
        given: the settings of its training. statistics: ``sensitivity.statistics``.

    Raises:
        Problem: a rule or criterion that the method cannot have; its key is of the settings.
    """
    searched = set(get_args(Parameter)) - set(tune.fixed.get(name, ()))
    low, high = (max(method.least_epochs, round(factor * given.epochs)) for factor in tune.epochs_factors)
    lr = given.lr * tune.lr_factors[0], given.lr * tune.lr_factors[1]
    sized = isinstance(method, Tune) and {"density"} in SIZES[method.rule]
    rules: Choices = ()
    if isinstance(method, Tune) and method.uses_gradients and "rule" in searched:
        rules = tuple((rule, criterion) for rule in tune.rules for criterion in tune.criteria)
        density = {"density": tune.densities[0]} if sized and "density" in searched else {}
        for rule, criterion in rules:
            _require_usable(name, method, {"rule": rule, "criterion": criterion, **density}, statistics)
    return Space(
        lr=lr if "lr" in searched else None,
        epochs=(low, high) if "epochs" in searched else None,
        density=tune.densities if sized and "density" in searched else None,
        rules=rules,
    )


def with_values(method: MethodSettings, values: Values) -> AnyMethod:
    """The method with the values of a trial.

    Raises:
        pydantic.ValidationError: they do not go together.
    """
    own = method.model_dump()
    if "density" in values:
        own |= dict.fromkeys(("k", "bias_density", "domain_density", "bias_k", "domain_k"))
    if "criterion" in values and values["criterion"] not in ("fisher", "magnitude"):
        own["source"] = None
    return read_method({**own, **values})


def _require_usable(name: str, method: Tune, values: Values, statistics: str) -> None:
    rule, criterion = values["rule"], values["criterion"]
    if statistics not in KEPT_FOR[criterion]:
        needed = " or ".join(map(repr, KEPT_FOR[criterion]))
        raise Problem(
            ("sensitivity", "statistics"), f"found {statistics!r}, but {criterion!r} of tune.criteria needs {needed}"
        )
    try:
        with_values(method, values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Problem(
            ("tune", "criteria"),
            f"{criterion!r} with rule {rule!r} is not possible for methods.{name}: {reason}; leave it out, or list the"
            f" rule in tune.fixed.{name}",
        ) from None
