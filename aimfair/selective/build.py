"""Build information, and the choice of the CPU path."""

from typing import TypedDict

from aimfair.selective.extension import _C


class BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    sanitizers: str
    torch_abi: str
    """Oldest torch version that the extension works with."""
    cuda: str
    """CUDA version of the compiled kernels; empty without them."""
    cuda_architectures: str
    emulated: bool
    """Whether CPU tensors go to the CUDA kernels, run by the emulator of the tests."""
    cpu_paths: list[str]
    """Compiled instruction sets that this processor supports."""
    cpu_path: str
    """The one in use."""


def build_info() -> BuildInfo:
    return _C.build_info()


def cpu_paths() -> list[str]:
    """CPU paths available on this processor, slowest first, of scalar, avx2 and avx512, or scalar and neon."""
    return _C.cpu_paths()


def set_cpu_path(name: str) -> None:
    """Selects the CPU path of all later calls. All paths give the same bits.

    Raises:
        ValueError: not available on this processor or in this build.
    """
    _C.set_cpu_path(name)
