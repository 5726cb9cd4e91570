"""Z-Image: one transformer over patches and tokens, conditioned on Qwen3."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import (
    Family,
    Latents,
    Pipeline,
    StandIn,
    Vocabulary,
    chat,
    decoder,
    require_multiple,
)
from aimfair.diffusion.families.masked import lengthened
from aimfair.diffusion.families.rotary import Rotated, Rotations, twin

_PATCH = 2  # latents along each side of a patch
_LENGTH = 256  # tokens that an engine takes
_SIZE = 1024  # pixels; the default of diffusers
_PADDED = 32  # patches and tokens are padded, with learned vectors, to a multiple of this


class Denoiser(nn.Module):
    """The transformer's prediction [B, C, h, w], for one image size and any prompts.

    The transformer itself takes lists of tensors with different lengths, which cannot be exported. This calls its
    layers with tokens padded to ``_LENGTH`` and masked.
    """

    positions: Tensor

    def __init__(self, transformer: Any, latents: Latents):
        super().__init__()
        self._rotations = Rotations()
        self.transformer = twin(transformer)
        for layers in (self.transformer.noise_refiner, self.transformer.context_refiner, self.transformer.layers):
            for layer in layers:
                for name in ("norm_q", "norm_k"):
                    setattr(layer.attention, name, Rotated(getattr(layer.attention, name), self._rotations))
        self._latents = latents
        rows, columns = latents[1] // _PATCH, latents[2] // _PATCH
        grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        self._patches = rows * columns
        self._padding = -self._patches % _PADDED
        # A patch is at (tokens + 1, row, column), a token at (number + 1, 0, 0), padding of patches at the origin.
        self.register_buffer("positions", torch.stack([part.flatten() for part in grid]), persistent=False)
        rotations = transformer.rope_embedder.precompute_freqs_cis(
            transformer.axes_dims, transformer.axes_lens, theta=transformer.rope_theta
        )
        for axis, table in enumerate(rotations):
            self.register_buffer(f"axis{axis}", torch.view_as_real(table).to(transformer.device), persistent=False)

    def forward(self, sample: Tensor, timestep: Tensor, embeddings: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            sample: [B, C, h, w]. timestep: [B], 0 to 1.
            embeddings: [B, L, D], of which the first ``length``, int64 [B], are tokens.
        """
        model, batch = self.transformer, len(sample)
        time = model.t_embedder(timestep * model.t_scale).type_as(sample)
        padded = (length + _PADDED - 1) // _PADDED * _PADDED

        patches = model.all_x_embedder[f"{_PATCH}-1"](self._cut(sample))
        filler = model.x_pad_token.expand(batch, self._padding, -1)
        patches = torch.cat([patches, filler], 1)
        of_patches = self._of_patches(padded)
        self._rotations.set(of_patches)
        for layer in model.noise_refiner:
            patches = layer(patches, None, None, time)

        numbers = torch.arange(embeddings.shape[1], device=sample.device).expand(batch, -1)
        tokens = model.cap_embedder(embeddings)
        tokens = torch.where((numbers < length[:, None])[..., None], tokens, model.cap_pad_token)
        used = numbers < padded[:, None]
        origin = torch.zeros_like(numbers)
        of_tokens = self._at(numbers + 1, origin, origin)
        self._rotations.set(of_tokens)
        for layer in model.context_refiner:
            tokens = layer(tokens, used, None)

        everything = torch.cat([patches, tokens], 1)
        mask = torch.cat([torch.ones_like(patches[..., 0], dtype=torch.bool), used], 1)
        self._rotations.set(torch.cat([of_patches, of_tokens], 1))
        for layer in model.layers:
            everything = layer(everything, mask, None, time)
        predicted = model.all_final_layer[f"{_PATCH}-1"](everything, c=time)
        return (self._join(predicted[:, : self._patches]),)

    def _of_patches(self, tokens: Tensor) -> Tensor:
        """Rotations [B, N, D/2, 2] behind so many tokens, int64 [B]."""
        batch = len(tokens)
        first = (tokens + 1)[:, None].expand(batch, self._patches)
        rows, columns = (part.expand(batch, -1) for part in self.positions)
        origin = torch.zeros(batch, self._padding, dtype=torch.int64, device=tokens.device)
        return self._at(*(torch.cat([part, origin], 1) for part in (first, rows, columns)))

    def _at(self, *positions: Tensor) -> Tensor:
        """Rotations [B, N, D/2, 2] at positions [B, N] along each axis."""
        tables = (getattr(self, f"axis{axis}") for axis in range(3))
        return torch.cat([table[at] for table, at in zip(tables, positions, strict=True)], -2)

    def _cut(self, sample: Tensor) -> Tensor:
        """[B, C, h, w] -> patches [B, N, 4C], channels last."""
        batch, channels, height, width = sample.shape
        patches = sample.reshape(batch, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, self._patches, _PATCH**2 * channels)

    def _join(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`_cut`."""
        channels, height, width = self._latents
        grid = patches.reshape(-1, height // _PATCH, width // _PATCH, _PATCH, _PATCH, channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)


class DenoiserStandIn(StandIn):
    """Replaces the transformer."""

    def __init__(self, transformer: Any, engine: Any, part: str):
        super().__init__(transformer, engine, part)
        self.in_channels = transformer.in_channels  # the pipeline looks there

    def forward(
        self, samples: list[Tensor], timestep: Tensor, embeddings: list[Tensor], **others: Any
    ) -> tuple[list[Tensor]]:
        """``samples``: [C, 1, h, w] each. Embeddings: [L, D] each."""
        self.refuse(others)
        batch = len(samples)
        (predicted,) = self.run(
            torch.stack(samples).squeeze(2),
            self.steps(timestep, batch),
            torch.cat([lengthened(one[None], _LENGTH) for one in embeddings]),
            torch.tensor([len(one) for one in embeddings], device=self.device),
        )
        return (list(predicted.unsqueeze(2)),)


class ZImage(Family):
    """The scale of guidance is that of other models minus 1: above 0 there is guidance."""

    pipeline = "ZImagePipeline"
    models = "Z-Image and Z-Image-Turbo"
    components = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    without: ClassVar[dict[str, Any]] = {}
    denoiser = "transformer"
    stand_in = DenoiserStandIn
    encoders: ClassVar[dict[str, tuple[str, ...]]] = {}
    embeddings = ("prompt_embeds",)
    own_scheduler = True
    halves = "prompt first"
    full_latents = True

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        factor = pipeline.vae_scale_factor
        size = render_size or _SIZE
        require_multiple(size, _PATCH * factor, _SIZE)
        return pipeline.transformer.in_channels, size // factor, size // factor

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        denoiser = Part(
            "denoiser",
            Denoiser(transformer, latents).to(transformer.device).eval(),
            inputs={
                "sample": Tensors(latents, dtype),
                "timestep": Tensors((), torch.float32, below=1),
                "embeddings": Tensors((_LENGTH, config.cap_feat_dim), dtype),
                "length": Tensors((), torch.int64, below=_LENGTH),
            },
            outputs={"predicted": Tensors(latents, dtype)},
        )
        return denoiser, decoder(pipeline, latents, torch.float32)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        return {"text_encoder": Vocabulary(pipeline.tokenizer, _LENGTH, chat(pipeline.tokenizer, enable_thinking=True))}

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        (embedding,), _ = pipeline.encode_prompt(
            text, device=pipeline.device, do_classifier_free_guidance=False, max_sequence_length=_LENGTH
        )
        return (embedding,)

    def batch(self, embedded: Sequence[tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """A list: of prompts of different lengths."""
        return ([tensor for (tensor,) in embedded],)

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return scale > 0
