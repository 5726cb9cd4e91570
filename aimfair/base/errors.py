"""Errors that the user can fix: one line each, which the command line prints without a traceback."""


class AimfairError(Exception):
    """One line: the file, key or tensor, what was found, what was expected, what to do."""

    exit_code = 1


class ConfigError(AimfairError):
    """A setting or a command line that cannot be used."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or else its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
