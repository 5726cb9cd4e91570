"""Imports packages in a process of its own: an import may end the process, or break those that follow."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from aimfair.base.errors import one_line
from aimfair.base.libraries import Broken, broken_library


def failures(modules: Sequence[str]) -> dict[str, Broken]:
    """Those of these modules that cannot be imported, and why.

    Args:
        modules: names such as "yaml"; or "transformers:PreTrainedModel", of a name in a module that loads it lazily.
    """
    found: dict[str, Broken] = {}
    rest = list(modules)
    while rest:
        # With the path of this process: an interpreter's own depends on how it is started.
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import report; report({rest!r})"
        child = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        results = child.stdout.splitlines()
        for module, result in zip(rest, results, strict=False):
            if failure := json.loads(result):
                found[module] = Broken(*failure)
        if len(results) < len(rest):
            found[rest[len(results)]] = _ended(child.returncode)
        rest = rest[len(results) + 1 :]
    return found


def report(modules: Sequence[str]) -> None:
    """Prints a line of JSON for each module as soon as it is imported: null, or the fields of a :class:`Broken`."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)  # a module may print
        for module in modules:
            print(json.dumps(_failure(module)), file=output, flush=True)


def _failure(module: str) -> Broken | None:
    path, _, name = module.partition(":")
    try:
        loaded = importlib.import_module(path)
        if name:
            getattr(loaded, name)
    except BaseException as error:  # even SystemExit, with which a module can refuse a platform
        return broken_library(error) or Broken(f"cannot be imported: {type(error).__name__}: {one_line(error)}", "")
    return None


def _ended(code: int) -> Broken:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return Broken(f"cannot be imported: the process {how}", "")
