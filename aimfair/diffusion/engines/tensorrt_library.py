"""The two packages of TensorRT, whose classes are the same, and what they say. The only importer of both."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from aimfair.base.errors import AimfairError

TENSORRT, RTX = NAMES = ("tensorrt", "tensorrt-rtx")
"""Of the engines, and of the packages that ``pip install`` knows."""

_MODULES = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
_OLDEST = {TENSORRT: "11.0", RTX: "1.7"}  # networks have the precision of their graph, without being asked
_DTYPES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int32: "INT32",
    torch.int64: "INT64",
}
_LONGEST = 400  # characters of a reason in an error


@dataclass(frozen=True)
class Library:
    """A package that was imported.

    Attributes:
        name: one of :data:`NAMES`.
        api: its module, which has no types.
    """

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def just_in_time(self) -> bool:
        """Whether an engine is compiled for the GPU where it runs, and may be built without one."""
        return self.name == RTX

    def architectures(self) -> list[int]:
        """Compute capabilities times ten that engines can be built for; of tensorrt-rtx."""
        names = self.api.ComputeCapability.__members__
        return sorted(int(name[2:]) for name in names if name.startswith("SM"))

    def architecture(self, number: int) -> Any:
        """The library's word for one of :meth:`architectures`."""
        return self.api.ComputeCapability.__members__[f"SM{number}"]

    def has_dtype(self, dtype: torch.dtype, found: Any) -> bool:
        """Whether the library's word for a dtype is that of torch."""
        return bool(found == getattr(self.api.DataType, _DTYPES[dtype]))


class Messages:
    """What the library says while it works: nothing of it goes to the terminal.

    Attributes:
        logger: to be given to the library, and kept for as long as anything that it made.
        errors, warnings: one line each.
    """

    def __init__(self, library: Library):
        self.errors: list[str] = []
        self.warnings: list[str] = []
        severity = library.api.ILogger.Severity
        kept = {
            severity.INTERNAL_ERROR: self.errors,
            severity.ERROR: self.errors,
            severity.WARNING: self.warnings,
        }

        base: Any = library.api.ILogger

        class Logger(base):  # type: ignore[misc]  # it has no types
            def __init__(self) -> None:
                base.__init__(self)  # super() would not make the C++ object

            def log(self, severity: Any, msg: str) -> None:  # called from C++, through which nothing may be raised
                if severity in kept:
                    kept[severity].append(" ".join(msg.split()))

        self.logger = Logger()

    def reason(self) -> str:
        """The last errors, in one line."""
        text = "; ".join(dict.fromkeys(self.errors[-3:])) or "no reason given"
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

    @property
    def out_of_memory(self) -> bool:
        """Whether an error says so."""
        text = " ".join(self.errors).lower().replace(" ", "")
        return any(word in text for word in ("outofmemory", "insufficientmemory", "cudaerror2)", "bad_alloc"))


def load_library(name: str) -> Library:
    """Imports the package of an engine.

    Raises:
        AimfairError: it is missing, too old, or cannot be loaded.
    """
    module = _MODULES[name]
    try:
        api = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise AimfairError(
            f"{error.name} is not installed; generate.engine {name} needs: pip install {name} onnx onnxscript"
        ) from error
    except (ImportError, OSError) as error:  # its own libraries are missing
        raise AimfairError(
            f"{module} cannot be loaded: {' '.join(str(error).split())}; install it anew: pip install --force-reinstall"
            f" {name}"
        ) from error
    found = Library(name, api)
    if _numbers(found.version) < _numbers(_OLDEST[name]):
        raise AimfairError(
            f"generate.engine: found {name} {found.version}, expected {_OLDEST[name]} or later: pip install --upgrade"
            f" {name}"
        )
    return found


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]
