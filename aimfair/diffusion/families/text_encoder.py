"""Text encoders as parts: CLIP's and T5's."""

from typing import Any

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.interface import Engine, Part, Tensors
from aimfair.diffusion.families.stand_in import StandIn

LAST, PENULTIMATE = "last_hidden_state", "penultimate_hidden_state"
"""Outputs [B, L, D]: of the last layer, and of the one before it."""

POOLED, PROJECTED = "pooler_output", "text_embeds"
"""Outputs [B, D]: the text as a whole, without and with CLIP's projection."""


class TextEncoder(nn.Module):
    """The wanted outputs of an encoder of transformers, by their names above."""

    def __init__(self, encoder: Any, outputs: tuple[str, ...]):
        super().__init__()
        self.encoder = encoder
        self._outputs = outputs

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoder(tokens, output_hidden_states=PENULTIMATE in self._outputs)
        return tuple(
            encoded.hidden_states[-2] if name == PENULTIMATE else getattr(encoded, name) for name in self._outputs
        )


def text_encoder(encoder: Any, name: str, length: int, outputs: tuple[str, ...]) -> Part:
    """The part of that name for texts of ``length`` tokens."""
    config, dtype = encoder.config, encoder.dtype
    shapes = {
        LAST: (length, config.hidden_size),
        PENULTIMATE: (length, config.hidden_size),
        POOLED: (config.hidden_size,),
        PROJECTED: (getattr(config, "projection_dim", 0),),
    }
    return Part(
        name,
        TextEncoder(encoder, outputs).eval(),
        inputs={"tokens": Tensors((length,), torch.int64, below=config.vocab_size)},
        outputs={output: Tensors(shapes[output], dtype) for output in outputs},
    )


class Encoded:
    """What pipelines read of what an encoder returns: outputs by name, the first one, and the last but one layer."""

    def __init__(self, outputs: dict[str, Tensor]):
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        if name == "hidden_states":
            return self._outputs[PENULTIMATE], None
        return self._outputs[name]

    def __getitem__(self, index: int) -> Tensor:
        return list(self._outputs.values())[index]


class EncoderStandIn(StandIn):
    """In the place of a text encoder.

    Args:
        outputs: of its part; the one that pipelines take by number first.
    """

    def __init__(self, module: Any, engine: Engine, part: str, outputs: tuple[str, ...]):
        super().__init__(module, engine, part)
        self._outputs = outputs

    def forward(self, tokens: Tensor, output_hidden_states: bool = False, **others: Any) -> Encoded:
        self.refuse(others)
        return Encoded(dict(zip(self._outputs, self.run(tokens.to(self.device)), strict=True)))
