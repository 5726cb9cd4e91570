"""Libraries that are not installed, or that cannot be imported: errors of one line that name them.

Libraries import each other when they need them, and word a failure of those as their own; which one is broken follows
from the module that was being imported.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import NamedTuple

from aimfair.base.errors import AimfairError, one_line


class Broken(NamedTuple):
    """An installed library that cannot be imported."""

    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.found}; {self.remedy}"


@contextmanager
def optional(purpose: str, packages: str) -> Iterator[None]:
    """Around the imports of optional libraries.

    Args:
        purpose: what needs them, for the error.
        packages: what ``pip install`` is to install.

    Raises:
        AimfairError: a library is not installed, or it or one that it imports fails.
    """
    try:
        yield
    except Exception as error:  # importing runs code, a library built for another torch may raise anything
        if broken := broken_library(error):
            raise AimfairError(str(broken)) from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            found = f"{error.name.partition('.')[0]} is not installed"
        else:
            found = f"an import failed: {one_line(error)}"
        raise AimfairError(f"{found}; {purpose} needs: pip install {packages}") from error


def broken_library(error: BaseException) -> Broken | None:
    """The library whose import failed, if that led to this error; None if something else did."""
    found = None
    for cause in _causes(error):
        if (package := _importing(cause)) is not None:
            found = package, cause
    if found is None:
        return None
    package, cause = found
    lacking = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
    if lacking and _installed(lacking) is None:
        return Broken(f"{package} needs {lacking}, which is not installed", f"pip install {lacking}")
    return Broken(
        f"{package} {metadata.version(package)} is installed but cannot be imported: {one_line(cause)}",
        f"reinstall {package} in a version that fits the other packages, or, if unused, pip uninstall {package}",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what led to it, as a traceback shows them."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context


def _importing(error: BaseException) -> str | None:
    """The installed package, other than aimfair, whose module was being imported when an error was raised."""
    innermost = "aimfair"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code.co_name == "<module>" and module not in sys.stdlib_module_names:
            innermost = module
    return None if innermost in ("aimfair", "__main__") else _installed(innermost)


def _installed(module: str) -> str | None:
    """The installed package that a top-level module belongs to."""
    if packages := metadata.packages_distributions().get(module):
        return packages[0]
    try:
        return metadata.metadata(module)["Name"]
    except metadata.PackageNotFoundError:
        return None
