"""Functions of the user that look at images: a face count, a watermark detector, a classifier of one's own."""

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.generation.plan import Group

_REASON = re.compile(r"[A-Za-z0-9_-]{1,40}")


def fingerprint(hook: str) -> str:
    """SHA-256 of the source of a hook's module. What the module imports is not in it.

    Raises:
        AimfairError: Python does not find the module, or it has no source.
    """
    module, _, _ = hook.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise AimfairError(
            f"generate.filters.hooks: {hook}: Python finds no module {module}; put its folder into PYTHONPATH"
        )
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


class Hook:
    """A function ``(images, groups) -> reasons``, with the arguments and the result of :class:`ImageFilter`.

    It is called from one thread, a batch at a time, and must give the same answer for the same images.

    Args:
        hook: as module:function.

    Raises:
        AimfairError: there is no such function.
    """

    def __init__(self, hook: str):
        self._name = hook
        module, _, name = hook.partition(":")
        try:
            function: Any = getattr(importlib.import_module(module), name)
        except Exception as error:  # a module of the user may raise anything
            raise AimfairError(f"generate.filters.hooks: {hook}: {type(error).__name__}: {error}") from error
        if not callable(function):
            raise AimfairError(f"generate.filters.hooks: {hook}: a {type(function).__name__}, expected a function")
        self._function: Callable[[npt.NDArray[np.uint8], Sequence[Group]], Any] = function

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """As :class:`ImageFilter` says; the function gets a copy of the images.

        Raises:
            AimfairError: the function fails, or gives something else than a word or None for each image.
        """
        try:
            found = list(self._function(images.copy(), list(groups)))
        except Exception as error:
            raise AimfairError(f"generate.filters.hooks: {self._name}: {type(error).__name__}: {error}") from error
        if len(found) != len(images):
            raise AimfairError(
                f"generate.filters.hooks: {self._name}: {len(found)} answers for {len(images)} images, expected one"
                " for each"
            )
        for reason in found:
            if reason is not None and not (isinstance(reason, str) and _REASON.fullmatch(reason)):
                raise AimfairError(
                    f"generate.filters.hooks: {self._name}: answered {reason!r}, expected None or a reason of 1 to 40"
                    " letters, digits, - and _"
                )
        return found
