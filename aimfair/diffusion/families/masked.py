"""Shared by transformers that take token embeddings of one length, most of them with a mask."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.engine import Tensors
from aimfair.diffusion.families.family import StandIn


class MaskedDenoiser(nn.Module):
    """The transformer's prediction, [B, C, h, w]."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer

    def forward(
        self, sample: Tensor, timestep: Tensor, embeddings: Tensor, mask: Tensor, guidance: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        # The exporter keeps a batch size for each input, unless told.
        torch._check(len(embeddings) == len(mask) == len(sample))  # type: ignore[no-untyped-call]
        scale = {} if guidance is None else {"guidance": guidance}
        predicted: Tensor = self.transformer(
            sample,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=mask,
            timestep=timestep,
            return_dict=False,
            **self.conditions(len(sample)),
            **scale,
        )[0]
        return (predicted,)

    def conditions(self, batch: int) -> dict[str, Any]:
        """Arguments that depend on the image size only."""
        return {}


class MaskedDenoiserStandIn(StandIn):
    """Replaces the transformer.

    Attributes:
        constants: arguments that depend on the image size only.
    """

    constants: ClassVar[tuple[str, ...]] = ()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        timestep: Tensor,
        guidance: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        self.refuse({name: value for name, value in others.items() if name not in self.constants})
        batch = len(hidden_states)
        scale = () if guidance is None else (self.steps(guidance, batch),)
        return self.run(
            hidden_states, self.steps(timestep, batch), encoder_hidden_states, encoder_attention_mask, *scale
        )


def masked_inputs(length: int, width: int, dtype: torch.dtype) -> dict[str, Tensors]:
    """Of ``length`` token embeddings [L, D] and their mask, 1 or 0 [L]."""
    return {
        "embeddings": Tensors((length, width), dtype),
        "mask": Tensors((length,), torch.int64, below=2),
    }


def lengthened(tensor: Tensor, length: int) -> Tensor:
    """[B, L, ...] -> [B, length, ...], with zeros at the end."""
    return torch.cat([tensor, tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])], 1)
