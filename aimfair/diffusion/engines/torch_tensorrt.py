"""Denoiser and decoder by Torch-TensorRT, as a backend of torch.compile. It has not been run: it needs a GPU.

Operations that it does not support stay in PyTorch, as its compiler decides; each batch size is compared with eager.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.libraries import optional
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines.compiled import Compiled
from aimfair.diffusion.engines.engine import Source

NAME = "torch-tensorrt"
_BACKEND = "torch_tensorrt"


def load(source: Source, log: Log = NOWHERE, interrupt: Interrupt = NEVER) -> Compiled:
    """The engine.

    Raises:
        AimfairError: the package is missing, or the model is not on a GPU.
    """
    _library()
    if source.device.type != "cuda":
        raise AimfairError(
            f"generate.engine: {NAME} runs on an NVIDIA GPU, found device {source.device}; run it on such a machine, or"
            " use --generate.engine onnxruntime or eager"
        )
    options = {"enabled_precisions": {source.dtype}, "disable_tf32": True}
    return Compiled(source, log, interrupt, backend=(_BACKEND, options))


def versions() -> dict[str, Any]:
    """What images depend on besides model and settings."""
    _library()
    return {NAME: version(NAME), "torch": torch.__version__}


def _library() -> None:
    """Registers the backend."""
    with optional(f"generate.engine {NAME}", NAME):
        import_module("torch_tensorrt")
