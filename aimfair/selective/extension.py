"""The extension module ``aimfair._C``, or an error that says why it does not fit and what to do.

One binary serves torch 2.11 and later, of any build for the CPU, and of builds for CUDA of the same major version: it
keeps to LibTorch's stable ABI. Importing this registers the operators.
"""

import re
import sys

import torch  # its libraries must be loaded before the extension

import aimfair

OLDEST_TORCH = (2, 11)
"""As in cmake/AimfairTorch.cmake."""


def refuse_old_torch(version: str) -> None:
    """
    Raises:
        ImportError: this torch is too old for the extension, which could end the process when it is loaded.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"torch {version} was found, but aimfair {aimfair.__version__} needs {oldest} or later: "
            f"pip install --upgrade 'torch>={oldest}'"
        )


def refuse_other_cuda(version: str, cuda: str | None, built: str) -> None:
    """
    Args:
        version, cuda: of torch, with None for a build without CUDA.
        built: CUDA version of the kernels; empty without them.

    Raises:
        ImportError: torch and the kernels are for different major versions of CUDA.
    """
    if cuda and built and _major(cuda) != _major(built):
        raise ImportError(
            f"torch {version} is built for CUDA {cuda}, but this aimfair {aimfair.__version__} for CUDA {built}: "
            f"install the wheel aimfair=={aimfair.__version__}+cu{_major(cuda)} (docs/install.md), or a torch for CUDA"
            f" {_major(built)}"
        )


def _major(cuda: str) -> str:
    return cuda.partition(".")[0]


def explain(error: ImportError, version: str) -> ImportError:
    """The error of a module that cannot be loaded with this version of torch."""
    if error.name == "aimfair._C" or "cannot import name '_C'" in str(error):
        return ImportError(
            f"aimfair in {aimfair.__path__[0]} has no compiled extension for this Python {sys.version.split()[0]}"
            f" ({sys.implementation.cache_tag}): run make build in a checkout; otherwise pip install --force-reinstall"
            " --no-deps aimfair"
        )
    return ImportError(
        f"aimfair's extension does not load with torch {version} in {torch.__path__[0]}: {error}; pip install"
        " --force-reinstall --no-deps aimfair, or, to build it against this torch, add --no-build-isolation --no-binary"
        " aimfair"
    )


refuse_old_torch(torch.__version__)
try:
    from aimfair import _C
except ImportError as error:
    raise explain(error, torch.__version__) from error
refuse_other_cuda(torch.__version__, torch.version.cuda, _C.build_info()["cuda"])

__all__ = ["_C"]
