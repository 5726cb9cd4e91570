"""The model's own modules in PyTorch: what every other engine has to agree with."""

from collections.abc import Sequence

from torch import Tensor

from aimfair.diffusion.engines.interface import Source


class Eager:
    """An :class:`Engine` that keeps nothing and needs nothing built."""

    def __init__(self, source: Source):
        self._modules = {part.name: part.module for part in source.parts}

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self._modules[part](*inputs)
        return outputs
