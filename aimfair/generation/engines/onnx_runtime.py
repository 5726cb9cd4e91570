"""The engine of ONNX Runtime, on the CPU or with its CUDA provider. The only importer of onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimfair.errors import AimfairError
from aimfair.generation.engines import store
from aimfair.generation.engines.agreement import Agreement, compare
from aimfair.generation.engines.export import DECODER, DENOISER, INPUTS, OPSET, OUTPUT, export, exporters
from aimfair.generation.engines.interface import Shapes, Source
from aimfair.generation.model import fingerprint
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.log import NOWHERE, Log

NAME = "onnxruntime"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ELEMENTS = {torch.float32: np.float32, torch.float16: np.float16}


class OnnxRuntime:
    """An :class:`Engine`. Its threads are as many as torch's, and sleep while torch works.

    Args:
        folder: what :func:`aimfair.generation.engines.export.export` wrote.
        shapes, device: of the model that was exported.

    Raises:
        AimfairError: onnxruntime is missing, cannot use the device, or cannot read the files.
    """

    def __init__(self, folder: Path, shapes: Shapes, device: torch.device):
        self._shapes, self._device = shapes, device
        self._denoiser, self._decoder = (_session(folder / name, device) for name in (DENOISER, DECODER))

    def denoise(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        inputs = dict(zip(INPUTS[DENOISER], (sample, timestep, embeddings), strict=True))
        return self._run(self._denoiser, inputs, torch.empty_like(sample, memory_format=torch.contiguous_format))

    def decode(self, latents: Tensor) -> Tensor:
        images = latents.new_empty(len(latents), *self._shapes.image)
        return self._run(self._decoder, dict(zip(INPUTS[DECODER], (latents,), strict=True)), images)

    def _run(self, session: Any, inputs: dict[str, Tensor], output: Tensor) -> Tensor:
        """Fills ``output``. The session reads and writes torch's memory: nothing is copied."""
        binding = session.io_binding()
        inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            binding.bind_input(name, *_memory(tensor))
        binding.bind_output(OUTPUT, *_memory(output))
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # the session has a stream of its own
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has one class for all that can go wrong while it runs
            if "allocate memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        binding.synchronize_outputs()
        return output


def load(source: Source, log: Log = NOWHERE, interrupt: Interrupt = NEVER) -> OnnxRuntime:
    """The engine of a model, from the cache; exported, and compared with eager, if it is not there.

    Raises:
        AimfairError: a package is missing, the model cannot be exported, or the two do not agree.
        Interrupted: as ``interrupt`` says.
    """
    _library()  # before minutes of exporting

    def make(folder: Path) -> Agreement:
        export(source, folder, interrupt)
        return compare(OnnxRuntime(folder, source.shapes, source.device), source)

    facts = {
        "engine": NAME,
        "model": fingerprint(source.folder),
        "dtype": str(source.dtype).removeprefix("torch."),
        "latents": list(source.shapes.latents),
        "embeddings": list(source.shapes.embeddings),
        "device": source.device.type,
        **versions(),
    }
    folder = store.obtain(facts, make, model=str(source.folder), tools=exporters(), log=log, interrupt=interrupt)
    return OnnxRuntime(folder, source.shapes, source.device)


def versions() -> dict[str, Any]:
    """What images depend on, beside model and settings."""
    return {"onnxruntime": _library().__version__, "torch": torch.__version__, "opset": OPSET}


def _session(path: Path, device: torch.device) -> Any:
    library = _library()
    provider = _PROVIDERS[device.type]
    if provider not in library.get_available_providers():
        raise AimfairError(
            f"onnxruntime {library.__version__} has no {provider}; use --device cpu, or: pip uninstall onnxruntime;"
            " pip install onnxruntime-gpu"
        )
    options = library.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    place = {"device_id": device.index or 0} if device.type == "cuda" else {}
    try:
        session = library.InferenceSession(path, options, providers=[(provider, place)])
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AimfairError(
            f"{path}: onnxruntime {library.__version__} cannot load it: {reason}; use --generate.engine eager, or"
            " another version: pip install --upgrade onnxruntime"
        ) from error
    if (found := session.get_providers()[0]) != provider:  # it falls back without an error
        raise AimfairError(
            f"onnxruntime {library.__version__} cannot use {provider} here and took {found}; use --device cpu, or"
            " install the CUDA libraries that it needs: pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def _memory(tensor: Tensor) -> tuple[str, int, type, tuple[int, ...], int]:
    return tensor.device.type, tensor.device.index or 0, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()


def _library() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise AimfairError(
            f"{error.name} is not installed; generate.engine onnxruntime needs: pip install onnx onnxscript onnxruntime"
        ) from error
    return onnxruntime
