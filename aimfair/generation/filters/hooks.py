"""User-defined filters: a face counter, a watermark detector, any classifier."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.base.files import file_digest
from aimfair.generation.plan import Group
from aimfair.generation.reasons import SHOWS, WORDS, is_reserved

_REASON = re.compile(r"[A-Za-z0-9_-]{1,40}")


_KEY = "generate.filters.hooks"

Function = Callable[[npt.NDArray[np.uint8], Sequence[Group]], Any]


def fingerprint(hook: str, key: str = _KEY) -> str:
    """SHA-256 of the source file of a function's module, without what the module imports.

    Args:
        key: the setting, for errors.

    Raises:
        AimfairError: Python cannot find the module, or it has no source file.
    """
    module, _, _ = hook.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise AimfairError(f"{key}: {hook}: Python finds no module {module}; put its folder into PYTHONPATH")
    return file_digest(Path(spec.origin))


def load(hook: str, key: str = _KEY) -> Function:
    """A function of the user's, of images uint8 [B, H, W, 3] and B groups.

    Raises:
        AimfairError: there is no such function.
    """
    module, _, name = hook.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything
        raise AimfairError(f"{key}: {hook}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise AimfairError(f"{key}: {hook}: a {type(function).__name__}, expected a function")
    return cast(Function, function)


class Hook:
    """A function ``(images, groups) -> reasons``, as :meth:`ImageFilter.reasons`.

    It is called by one thread, a batch at a time, and must be deterministic.

    Args:
        hook: as module:function.

    Raises:
        AimfairError: there is no such function.
    """

    def __init__(self, hook: str):
        self._name, self._function = hook, load(hook)

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """As :meth:`ImageFilter.reasons`; the function receives a copy of the images.

        Raises:
            AimfairError: the function fails, or does not return None or a word of its own for each image.
        """
        try:
            found = list(self._function(images.copy(), list(groups)))
        except Exception as error:
            raise AimfairError(f"{_KEY}: {self._name}: {type(error).__name__}: {error}") from error
        if len(found) != len(images):
            raise AimfairError(
                f"{_KEY}: {self._name}: {len(found)} answers for {len(images)} images, expected one for each"
            )
        for reason in found:
            if reason is not None and not (isinstance(reason, str) and _REASON.fullmatch(reason)):
                raise AimfairError(
                    f"{_KEY}: {self._name}: answered {reason!r}, expected None or a reason of 1 to 40"
                    " letters, digits, - and _"
                )
            if reason is not None and is_reserved(reason):
                raise AimfairError(
                    f"{_KEY}: {self._name}: answered {reason!r}, a reason of aimfair's own ({', '.join(WORDS)} and all"
                    f" that begin with {SHOWS}_); answer another, such as 'my_{reason}'"
                )
        return found
