"""The engine of ONNX Runtime, on the CPU or with its CUDA provider. The only one to run onnxruntime."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.libraries import optional
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines import store
from aimfair.diffusion.engines.agreement import Agreement, compare
from aimfair.diffusion.engines.engine import Part, Source
from aimfair.diffusion.engines.export import OPSET, export, exporters, path_of
from aimfair.diffusion.engines.quantize import quantize

NAME = "onnxruntime"
_ENGINE = f"generate.engine {NAME}"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ELEMENTS = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}

_POSITIONS = 1024
"""Latent positions (rows times columns) of a chunk. For the shipped denoiser, 8 x 8, chunks of 16 and 32 images
fit the cache; 8 lose 3% to call overhead, 64 lose 4% to memory. One image of 32 x 32, 256 pixels of Stable Diffusion,
keeps all threads busy."""


class OnnxRuntime:
    """An :class:`Engine` with as many threads as torch, which sleep while torch works.

    On the CPU a batch is split into chunks. With small images each thread runs whole chunks: sharing small layers,
    threads would mostly wait for each other. Large images run one by one with all threads in every layer: ONNX Runtime
    keeps all attention scores in memory, a gigabyte for one image of Stable Diffusion.

    Args:
        folder: written by :func:`aimfair.diffusion.engines.export.export`.
        parts: the exported parts; their modules are not kept.
        device: of the model.

    Raises:
        AimfairError: onnxruntime is missing, cannot use the device, or cannot read the files.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], device: torch.device):
        _require_provider(device)
        self._device = device
        self._tensors = {part.name: (part.inputs, part.outputs) for part in parts}
        self._threads = torch.get_num_threads()
        self._pieces = {part.name: _piece(part) if device.type == "cpu" else 0 for part in parts}
        """Images of a chunk. Several: a chunk per thread; 1: all threads share an image; 0: the whole batch at once."""
        self._sessions = {
            part.name: session(path_of(folder, part.name), device, 1 if self._pieces[part.name] > 1 else self._threads)
            for part in parts
        }
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=NAME)

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`Engine.run`. The session reads and writes torch's memory without copies."""
        names, results = self._tensors[part]
        batch = len(inputs[0])
        given = {name: tensor.contiguous() for name, tensor in zip(names, inputs, strict=True)}
        made = {
            name: torch.empty(batch, *tensors.shape, dtype=tensors.dtype, device=self._device)
            for name, tensors in results.items()
        }
        session, piece = self._sessions[part], self._pieces[part]
        if piece == 0:
            self._run(session, given, made)
        elif piece == 1:
            for row in range(batch):
                self._run(session, _cut(given, slice(row, row + 1)), _cut(made, slice(row, row + 1)))
        else:
            cuts = _cuts(batch, piece, self._threads)
            list(self._pool.map(lambda cut: self._run(session, _cut(given, cut), _cut(made, cut)), cuts))
        return tuple(made.values())

    def _run(self, session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Fills ``outputs``; all tensors are contiguous."""
        binding = session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *_memory(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *_memory(tensor))
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # the session has its own stream
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has one error class for all runtime failures
            if "allocate memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        binding.synchronize_outputs()


def load(source: Source, log: Log = NOWHERE, interrupt: Interrupt = NEVER) -> OnnxRuntime:
    """The engine of a model from the cache; if it is not there, it is exported and compared with eager.

    Raises:
        AimfairError: a package is missing, the model cannot be exported, or the engine differs from eager.
        Interrupted: as ``interrupt`` says.
    """
    _library()  # fails before minutes of exporting

    def make(folder: Path) -> Agreement:
        export(source, folder, interrupt)
        quantize(source, folder, symmetric=False)
        return compare(OnnxRuntime(folder, source.parts, source.device), source)

    facts = {"engine": NAME, **source.facts(), **versions()}
    folder = store.obtain(facts, make, model=str(source.folder), tools=exporters(), log=log, interrupt=interrupt)
    return OnnxRuntime(folder, source.parts, source.device)


def versions() -> dict[str, Any]:
    """What images depend on besides model and settings."""
    return {"onnxruntime": _library().__version__, "torch": torch.__version__, "opset": OPSET}


def _piece(part: Part) -> int:
    """Images of a chunk; 1 if one image, or prompt, keeps all threads busy."""
    if part.name not in ("denoiser", "decoder"):
        return 1
    shape = next(iter(part.inputs.values())).shape  # of latents: [C, h, w], or Flux's [h/2 * w/2, 4C]
    positions = shape[1] * shape[2] if len(shape) == 3 else 4 * shape[0]
    return max(1, _POSITIONS // positions)


def _cuts(batch: int, piece: int, threads: int) -> list[slice]:
    """Chunks of at most ``piece`` images, equal in size up to one, the same number for each thread."""
    count = threads * -(-batch // (threads * piece))
    bounds = [round(k * batch / count) for k in range(count + 1)]
    return [slice(*ends) for ends in pairwise(bounds) if ends[0] < ends[1]]


def _cut(tensors: Mapping[str, Tensor], piece: slice) -> dict[str, Tensor]:
    return {name: tensor[piece] for name, tensor in tensors.items()}


def _require_provider(device: torch.device) -> None:
    library, provider = _library(), _PROVIDERS[device.type]
    if provider not in library.get_available_providers():
        raise AimfairError(
            f"onnxruntime {library.__version__} has no {provider}; use --device cpu, or: pip uninstall onnxruntime;"
            " pip install onnxruntime-gpu"
        )


def open_file(path: Path) -> Callable[[Tensor], Tensor]:
    """A function that runs a file with one input and one output, float32 on the CPU, on a whole batch.

    Raises:
        AimfairError: onnxruntime is missing, or cannot read the file.
    """
    opened = session(path, torch.device("cpu"), torch.get_num_threads())
    name = opened.get_inputs()[0].name
    return lambda batch: torch.from_numpy(opened.run(None, {name: batch.contiguous().numpy()})[0])


def session(path: Path, device: torch.device, threads: int, purpose: str = _ENGINE) -> Any:
    """An InferenceSession of a file.

    Args:
        purpose: what needs it, for errors.

    Raises:
        AimfairError: onnxruntime is missing, cannot use the device, or cannot read the file.
    """
    library, provider = _library(purpose), _PROVIDERS[device.type]
    options = library.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    place = {"device_id": device.index or 0, "use_tf32": "0"} if device.type == "cuda" else {}
    try:
        opened = library.InferenceSession(path, options, providers=[(provider, place)])
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        without = " or do without (--generate.engine eager; when exporting, --no-onnx)" if purpose == _ENGINE else ""
        raise AimfairError(
            f"{path}: onnxruntime {library.__version__} cannot load it: {reason}; try another version (pip"
            f" install --upgrade onnxruntime){without}"
        ) from error
    if (found := opened.get_providers()[0]) != provider:  # it falls back silently
        raise AimfairError(
            f"onnxruntime {library.__version__} cannot use {provider} and fell back to {found}; use --device cpu, or"
            " install the CUDA libraries that it needs: pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return opened


def _memory(tensor: Tensor) -> tuple[str, int, type, tuple[int, ...], int]:
    return tensor.device.type, tensor.device.index or 0, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()


def _library(purpose: str = _ENGINE) -> Any:
    with optional(purpose, "onnx onnxscript onnxruntime" if purpose == _ENGINE else "onnxruntime"):
        import onnxruntime
    return onnxruntime
