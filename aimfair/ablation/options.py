"""The flags of an ablation, checked before any work begins."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TypeVar

from pydantic import ValidationError

from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.methods import Tune

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Request:
    """What every ablation is asked for: the method that is varied, by name, and its settings."""

    method: str
    tune: Tune


@dataclass(frozen=True)
class Options:
    """The flags of ``aimfair ablate``, as typed; None: not given.

    Attributes:
        method: the one that is varied, instead of ``default_method``.
        values: what to vary, separated by commas.
        lrs: learning rates for each value, separated by commas.
        density: of ``criteria``.
        margin, features: of ``generators``.
    """

    method: str | None = None
    values: str | None = None
    lrs: str | None = None
    density: str | None = None
    margin: str | None = None
    features: str | None = None

    def only(self, ablation: str, *known: str) -> None:
        """Raises ConfigError for a given option other than ``known``."""
        for name in (field.name for field in fields(self)):
            if name not in known and getattr(self, name) is not None:
                raise ConfigError(f"--{name}: not valid for the ablation {ablation}")

    def method_of(self, config: Config) -> tuple[str, Tune]:
        """The name and the settings of the method that is varied.

        Raises:
            ConfigError: it is unknown, or selects no weights.
        """
        name = config.default_method if self.method is None else self.method
        if name not in config.methods:
            raise ConfigError(f"--method: found {name!r}, expected one of {', '.join(config.methods)}")
        method = config.methods[name]
        if not isinstance(method, Tune):
            raise ConfigError(f"--method: {name!r} is of kind {method.kind!r} and selects no weights; name another")
        return name, method


def shares(flag: str, typed: str | None, default: Sequence[float]) -> list[float]:
    """Numbers in (0, 1], ascending; fractions such as 1/9 are allowed."""
    return _numbers(
        flag, typed, default, lambda word: float(Fraction(word.replace(" ", ""))), "a share above 0, up to 1"
    )


def positive(flag: str, typed: str | None, default: Sequence[float]) -> list[float]:
    """Finite numbers above 0, ascending."""
    return _numbers(flag, typed, default, float, "a number above 0", most=math.inf)


def counts(flag: str, typed: str | None, default: Sequence[int]) -> list[int]:
    """Whole numbers above 0, ascending."""
    return _numbers(flag, typed, default, int, "a whole number above 0", most=math.inf)


def words(flag: str, typed: str | None, known: Sequence[str]) -> list[str]:
    """A subset of ``known``, in its order; all of it if ``typed`` is None."""
    if typed is None:
        return list(known)
    found = [word.strip() for word in typed.split(",")]
    for word in found:
        if word not in known:
            raise ConfigError(f"{flag}: found {word!r}, expected some of {', '.join(known)}")
    return [word for word in known if word in found]


def _numbers(
    flag: str, typed: str | None, default: Sequence[T], read: Callable[[str], T], expected: str, most: float = 1.0
) -> list[T]:
    if typed is None:
        return list(default)
    found: set[T] = set()
    for word in typed.split(","):
        try:
            value = read(word)
        except (ValueError, ZeroDivisionError, OverflowError):
            value = read("0")
        if not 0 < value <= most or not math.isfinite(value):
            raise ConfigError(f"{flag}: found {word.strip()!r}, expected {expected}; several are separated by commas")
        found.add(value)
    return sorted(found)


def with_density(flag: str, name: str, method: Tune, density: float) -> Tune:
    """The method at another density.

    Raises:
        ConfigError: its rule has no density.
    """
    if method.rule in ("all", "head_only", "blocks"):
        raise ConfigError(f"{flag}: {name!r} has the rule {method.rule!r}, which has no density; name another --method")
    others = dict.fromkeys(("k", "bias_density", "domain_density", "bias_k", "domain_k"))
    return changed(method, **others, density=density)


def changed(method: Tune, **settings: object) -> Tune:
    """The method with other settings.

    Raises:
        ConfigError: they are inconsistent.
    """
    return checked({**method.model_dump(), **settings})


def checked(settings: Mapping[str, object]) -> Tune:
    """The settings of a method.

    Raises:
        ConfigError: they are inconsistent.
    """
    try:
        return Tune.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
