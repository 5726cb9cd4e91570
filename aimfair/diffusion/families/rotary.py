"""Transformers with rotary position embeddings, for exports: constants, and real numbers in place of complex ones."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def twin(module: Any) -> Any:
    """A copy that shares the weights, and whose submodules can be replaced without changing the original."""
    other = copy.copy(module)
    other._modules = {name: child if child is None else twin(child) for name, child in module._modules.items()}
    return other


class Rotations:
    """The rotations of queries and keys of the layers that are run next.

    Attributes:
        cos, sin: [..., N, D/2].
    """

    cos: Tensor
    sin: Tensor

    def set(self, cos_and_sin: Tensor) -> None:
        """[..., N, D/2, 2]: as complex numbers of absolute value 1."""
        self.cos, self.sin = cos_and_sin.unbind(-1)


class Rotated(nn.Module):
    """In the place of the normalisation of queries or keys [B, N, H, D], which diffusers applies before it rotates.

    Args:
        norm: the normalisation, if there is one.
    """

    def __init__(self, norm: nn.Module | None, rotations: Rotations):
        super().__init__()
        self.norm = norm or nn.Identity()
        self._rotations = rotations

    def forward(self, heads: Tensor) -> Tensor:
        """Pairs of neighbours are rotated, in float32."""
        heads = self.norm(heads)
        real, imaginary = heads.float().reshape(*heads.shape[:-1], -1, 2).unbind(-1)
        cos, sin = self._rotations.cos[..., None, :], self._rotations.sin[..., None, :]
        turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
        return turned.flatten(-2).type_as(heads)
