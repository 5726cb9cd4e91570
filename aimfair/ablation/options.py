"""What a person asks of an ablation, read before any work begins."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from pydantic import ValidationError

from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.methods import Tune

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Options:
    """The flags of ``aimfair ablate``, as they were typed; None: not given.

    Attributes:
        method: which one is varied, instead of ``default_method``.
        values: what it is varied over, with commas.
        lrs: learning rates for each, with commas.
        density: of ``criteria``.
    """

    method: str | None = None
    values: str | None = None
    lrs: str | None = None
    density: str | None = None

    def only(self, ablation: str, *known: str) -> None:
        """Raises ConfigError for an option beside ``known`` that was given."""
        for name in ("method", "values", "lrs", "density"):
            if name not in known and getattr(self, name) is not None:
                raise ConfigError(f"--{name}: the ablation {ablation} takes none")

    def method_of(self, config: Config) -> str:
        """The name of the method.

        Raises:
            ConfigError: there is none of this name, or it selects no weights.
        """
        name = config.default_method if self.method is None else self.method
        if name not in config.methods:
            raise ConfigError(f"--method: found {name!r}, expected one of {', '.join(config.methods)}")
        if not isinstance(config.methods[name], Tune):
            raise ConfigError(
                f"--method: {name!r} is of kind {config.methods[name].kind!r} and selects no weights; name another"
            )
        return name


def tuned(config: Config, name: str) -> Tune:
    """The method of this name, one that :meth:`Options.method_of` gave."""
    method = config.methods[name]
    assert isinstance(method, Tune)
    return method


def shares(flag: str, text: str | None, default: Sequence[float]) -> list[float]:
    """Numbers above 0, at most 1, ascending; 1/9 is one."""
    return _numbers(
        flag, text, default, lambda word: float(Fraction(word.replace(" ", ""))), "a share above 0, up to 1"
    )


def positive(flag: str, text: str | None, default: Sequence[float]) -> list[float]:
    """Finite numbers above 0, ascending."""
    return _numbers(flag, text, default, float, "a number above 0", most=math.inf)


def counts(flag: str, text: str | None, default: Sequence[int]) -> list[int]:
    """Whole numbers above 0, ascending."""
    return _numbers(flag, text, default, int, "a whole number above 0", most=math.inf)


def words(flag: str, text: str | None, known: Sequence[str]) -> list[str]:
    """Some of ``known``, in its order; all of them if ``text`` is None."""
    if text is None:
        return list(known)
    found = [word.strip() for word in text.split(",")]
    for word in found:
        if word not in known:
            raise ConfigError(f"{flag}: found {word!r}, expected some of {', '.join(known)}")
    return [word for word in known if word in found]


def _numbers(
    flag: str, text: str | None, default: Sequence[T], read: Callable[[str], T], expected: str, most: float = 1.0
) -> list[T]:
    if text is None:
        return list(default)
    found: set[T] = set()
    for word in text.split(","):
        try:
            value = read(word)
        except (ValueError, ZeroDivisionError, OverflowError):
            value = read("0")
        if not 0 < value <= most or not math.isfinite(value):
            raise ConfigError(f"{flag}: found {word.strip()!r}, expected {expected}; several are parted by commas")
        found.add(value)
    return sorted(found)


def with_density(flag: str, name: str, method: Tune, density: float) -> Tune:
    """The method at another density.

    Raises:
        ConfigError: its rule knows no density.
    """
    if method.rule in ("all", "head_only", "blocks"):
        raise ConfigError(f"{flag}: {name!r} has the rule {method.rule!r}, which has no density; name another --method")
    sizes = {"k": None, "bias": None, "domain": None, "density": density}
    return changed(method, **sizes)


def changed(method: Tune, **settings: object) -> Tune:
    """The method with other settings.

    Raises:
        ConfigError: they do not go together.
    """
    return checked({**method.model_dump(), **settings})


def checked(settings: Mapping[str, object]) -> Tune:
    """A method that selects.

    Raises:
        ConfigError: they do not go together.
    """
    try:
        return Tune.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
