"""The interface of engines, what they are built from, and eager, the engine that others are compared with."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aimfair.diffusion.model import fingerprint


@dataclass(frozen=True)
class Tensors:
    """One input or output of a part.

    Attributes:
        shape: for one image, without the leading batch dimension B.
        dtype: of the tensor.
        below: values of the input are in [0, below), such as timesteps and token ids; None: roughly standard normal.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    below: int | None = None

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, ('B', *self.shape)))}]"


@dataclass(frozen=True)
class Part:
    """A module that an engine runs: the denoiser, the decoder or a text encoder.

    Attributes:
        name: "denoiser", "decoder", "text_encoder", "text_encoder_2", ...; also the name of its files.
        module: forward(\\*inputs) -> tuple of outputs, in the order of the two dictionaries; in evaluation mode.
        inputs, outputs: name -> shape and dtype.
        tiny_constants: whether it adds constants below 1e-8, which the exporter's optimizer takes for 0.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensors]
    outputs: dict[str, Tensors]
    tiny_constants: bool = False

    def signature(self) -> str:
        """For humans and for digests: ``sample float32[B, 4, 8, 8], ... -> output float32[B, 4, 8, 8]``."""
        ends = (self.inputs, self.outputs)
        return " -> ".join(", ".join(f"{name} {tensors}" for name, tensors in end.items()) for end in ends)


@dataclass(frozen=True)
class Quantization:
    """How the denoiser is rounded to 8 bits.

    Attributes:
        kind: int8 or fp8.
        prompts: of the calibration.
        sampling: other settings that the examples depend on, in JSON types.
        examples: makes inputs of the denoiser from them, each in the order of :attr:`Part.inputs`.
    """

    kind: str
    prompts: tuple[str, ...]
    sampling: dict[str, Any]
    examples: Callable[[], Sequence[Sequence[Tensor]]]

    def facts(self) -> dict[str, Any]:
        """
        Raises:
            AimfairError: the library that quantises is missing.
        """
        from aimfair.diffusion.engines import quantize  # which imports this module

        digest = hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()
        return {"kind": self.kind, "prompts": digest, **self.sampling, "onnxruntime": quantize.version()}


@dataclass(frozen=True)
class Source:
    """What an engine is built from: a model at one image size.

    Attributes:
        folder: of the model.
        parts: all modules that generate an image.
        dtype: of its weights; a part may have its own.
        device: where they are.
        changes: what differs from the model in the folder, such as another decoder, in JSON types.
        quantization: of the denoiser; None: there is none.
    """

    folder: Path
    parts: tuple[Part, ...]
    dtype: torch.dtype
    device: torch.device
    changes: dict[str, Any] = field(default_factory=dict)
    quantization: Quantization | None = None

    def facts(self) -> dict[str, Any]:
        """What an engine depends on besides its own version and the machine, in JSON types."""
        return {
            "model": fingerprint(self.folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "parts": {part.name: part.signature() for part in self.parts},
            **{name: version(name) for name in ("aimfair", "diffusers", "transformers")},
            **self.changes,
            **({} if self.quantization is None else {"quantization": self.quantization.facts()}),
        }


class Engine(Protocol):
    """Runs the parts of one model at one image size, with any batch size B."""

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of a part.

        Args:
            part: its name.
            inputs: in the order of :attr:`Part.inputs`, on the device of the model.
        """


class Eager:
    """The :class:`Engine` that calls the PyTorch modules."""

    def __init__(self, source: Source):
        self._modules = {part.name: part.module for part in source.parts}

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self._modules[part](*inputs)
        return outputs


@contextmanager
def full_precision() -> Iterator[None]:
    """Turns TF32 off within: its 10 bits of mantissa would hide a wrong engine."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before
