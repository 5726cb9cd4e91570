"""What an engine is and is made from, and eager, the engine that all others are compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
        shape: of one image; the batch B comes before it.
        dtype: as the part takes or gives it.
        below: values of an input are from 0 up to this, which they do not reach, as timesteps and numbers of tokens
            are; None: about standard normal.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    below: int | None = None

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, ('B', *self.shape)))}]"


@dataclass(frozen=True)
class Part:
    """What runs as one: the denoiser, the decoder, a text encoder.

    Attributes:
        name: "denoiser", "decoder", "text_encoder", "text_encoder_2", ...; also of its files.
        module: forward(\\*inputs) -> tuple of outputs, in the order of the two dictionaries; in evaluation mode.
        inputs, outputs: name -> what the tensor is like.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensors]
    outputs: dict[str, Tensors]

    def signature(self) -> str:
        """For people and for digests: ``sample float32[B, 4, 8, 8], ... -> output float32[B, 4, 8, 8]``."""
        ends = (self.inputs, self.outputs)
        return " -> ".join(", ".join(f"{name} {tensors}" for name, tensors in end.items()) for end in ends)


@dataclass(frozen=True)
class Source:
    """What an engine is made from: a model at one size of image.

    Attributes:
        folder: of the model.
        parts: all that it runs for an image.
        dtype: of its weights; a part may have another.
        device: where they are.
    """

    folder: Path
    parts: tuple[Part, ...]
    dtype: torch.dtype
    device: torch.device

    def facts(self) -> dict[str, Any]:
        """What an engine of it depends on beside versions and the machine, in JSON's types."""
        return {
            "model": fingerprint(self.folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "parts": {part.name: part.signature() for part in self.parts},
            **{name: version(name) for name in ("aimfair", "diffusers", "transformers")},
        }


class Engine(Protocol):
    """Runs the parts of one model at one size of image, any number B of images at a time."""

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of a part.

        Args:
            part: its name.
            inputs: as :attr:`Part.inputs` says, in that order, on the device of the model.
        """


class Eager:
    """An :class:`Engine` that keeps nothing and needs nothing built."""

    def __init__(self, source: Source):
        self._modules = {part.name: part.module for part in source.parts}

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self._modules[part](*inputs)
        return outputs


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, float32 convolutions and products keep 23 bits, not 10; a wrong engine could hide in the others."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before
