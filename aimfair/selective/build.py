"""What was built, and which CPU path runs."""

from typing import TypedDict

import torch  # noqa: F401 (its libraries must be loaded before the extension)

from aimfair import _C


class BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    sanitizers: str
    torch_abi: str
    """The extension works with this torch and later."""
    cuda: str
    """CUDA version of the compiled kernels; empty without them."""
    cuda_architectures: str
    emulated: bool
    """Whether CPU tensors are given to the CUDA kernels, run by the emulator of the tests."""
    cpu_paths: list[str]
    """Instruction sets that were compiled and that this processor has."""
    cpu_path: str
    """The one in use."""


def build_info() -> BuildInfo:
    return _C.build_info()


def cpu_paths() -> list[str]:
    """CPU paths that run on this processor, slowest first: of scalar, avx2, avx512."""
    return _C.cpu_paths()


def set_cpu_path(name: str) -> None:
    """Makes all later calls take this path. Every path gives the same bits.

    Raises:
        ValueError: the processor or the build does not have it.
    """
    _C.set_cpu_path(name)
