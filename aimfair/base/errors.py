"""Errors that the user can fix: one line each, which the command line prints without a traceback."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class AimfairError(Exception):
    """One line: the file, key or tensor, what was found, what was expected, what to do."""

    exit_code = 1


class ConfigError(AimfairError):
    """A setting or a command line that cannot be used."""

    exit_code = 2


class DivergedError(AimfairError):
    """A training whose loss, gradients or logits are not finite."""


def listed(items: Sequence[str], separator: str = ", ", most: int = 20) -> str:
    """The first items, and how many more there are."""
    more = f"{separator}and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def one_line(error: BaseException) -> str:
    """The whole message of an error with its lines joined; its type where there is none, or only a key."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if isinstance(error, KeyError) else message or type(error).__name__


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Errors inside begin with ``prefix``, such as the setting that they are about."""
    try:
        yield
    except AimfairError as error:
        error.args = (f"{prefix}: {error}", *error.args[1:])
        raise
