"""What a family of text-to-image models defines, and the modules that families share: text encoders and decoder."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Engine, Part, Tensors


class StandIn(nn.Module):
    """Has the configuration of a module, none of its weights, and an engine.

    Args:
        module: whose place it takes.
        part: the part of the engine that is run instead.
    """

    def __init__(self, module: Any, engine: Engine, part: str):
        super().__init__()
        self.config, self.dtype, self.device = module.config, module.dtype, module.device
        self._engine, self._part = engine, part

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the part."""
        return self._engine.run(self._part, inputs)

    def steps(self, timestep: Tensor, batch: int) -> Tensor:
        """Timesteps, one or [B], as float32 [B] on the device."""
        return timestep.to(self.device, torch.float32).expand(batch)

    def cache_context(self, _: str) -> AbstractContextManager[None]:
        """Pipelines enter it around each call; it is for caches of activations, which engines do not have."""
        return nullcontext()

    def refuse(self, others: dict[str, Any]) -> None:
        """Of the arguments that are left, any that says something.

        Raises:
            AimfairError: there is one.
        """
        if unknown := [name for name, value in others.items() if name != "return_dict" and value not in (None, {})]:
            raise AimfairError(f"generate.model needs {', '.join(unknown)}, which only --generate.engine eager takes")


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


Pipeline = Any
"""A pipeline of diffusers, which has no types."""

Latents = tuple[int, int, int]
"""Shape of the latents of one image as a picture: C channels, h rows, w columns."""


class Vocabulary(NamedTuple):
    """How one of the text encoders is fed.

    Attributes:
        tokenizer: of transformers.
        length: tokens that the encoder sees, marks of beginning and end among them.
    """

    tokenizer: Any
    length: int


class Family(ABC):
    """One kind of models.

    Attributes:
        pipeline: the class in diffusers, and in a model's ``model_index.json``.
        models: which ones these are, for people.
        components: the folders of a model that must be there.
        optional: those that it may have been made without.
        without: arguments that keep diffusers from loading what generating needs not.
        denoiser: the component that is run at every step.
        stand_in: what takes its place.
        encoders: text encoders that a model may have, with the outputs that the pipeline reads.
        embeddings: what :meth:`embed` returns, by the names of the pipeline's arguments; for the text to steer away
            from these begin with ``negative_``.
        own_scheduler: it has been trained for schedulers of its kind, and works with no other.
        steers_away: it can be guided away from a text.
    """

    pipeline: ClassVar[str]
    models: ClassVar[str]
    components: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    without: ClassVar[dict[str, Any]]
    denoiser: ClassVar[str]
    stand_in: ClassVar[type[StandIn]]
    encoders: ClassVar[dict[str, tuple[str, ...]]]
    embeddings: ClassVar[tuple[str, ...]]
    own_scheduler: ClassVar[bool] = False
    steers_away: ClassVar[bool] = True

    @abstractmethod
    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        """Of an image of that many pixels along each side; None: of the model's own size.

        Raises:
            AimfairError: the model cannot make images of this size.
        """

    @abstractmethod
    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        """All that runs for images with such latents: denoiser, decoder, text encoders."""

    @abstractmethod
    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        """Of every text encoder that the model has, by its name."""

    @abstractmethod
    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        """One text as :attr:`embeddings` names it; each [1, ...]."""

    @abstractmethod
    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        """Whether guidance of this scale runs the denoiser a second time, on the text to steer away from."""

    def negative(self, pipeline: Pipeline, text: str, embedded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The text to steer away from, which :meth:`embed` gave, as the denoiser is to see it."""
        return embedded

    def arrange(self, noise: Tensor) -> Tensor:
        """Noise [B, C, h, w] as the pipeline takes latents."""
        return noise

    def replace(self, pipeline: Pipeline, engine: Engine) -> None:
        """Replaces the pipeline's modules by the engine; the pipeline no longer holds their weights."""
        setattr(pipeline, self.denoiser, self.stand_in(getattr(pipeline, self.denoiser), engine, "denoiser"))
        for name in self.vocabularies(pipeline):
            encoder = getattr(pipeline, name)
            setattr(pipeline, name, EncoderStandIn(encoder, engine, name, self.encoders[name]))
        pipeline.vae = None

    def text_encoders(self, pipeline: Pipeline) -> tuple[Part, ...]:
        """The last of :meth:`parts`."""
        return tuple(
            text_encoder(getattr(pipeline, name), name, vocabulary.length, self.encoders[name])
            for name, vocabulary in self.vocabularies(pipeline).items()
        )


def require_multiple(found: int, multiple: int, own: int) -> None:
    """
    Raises:
        AimfairError: the size found is not a multiple of that; says what the model's own size is.
    """
    if found % multiple:
        raise AimfairError(
            f"generate.render_size: found {found}, expected a multiple of {multiple} for generate.model (its own is"
            f" {own})"
        )


class Decoder(nn.Module):
    """Pixels [B, 3, H, W], about -1 to 1, of latents [B, C, h, w] as the last step leaves them."""

    latents_std: Tensor | None
    latents_mean: Tensor | None

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        config = vae.config
        self._scale, self._shift = config.scaling_factor, config.shift_factor
        for name in ("latents_std", "latents_mean"):  # of each channel; few models have them
            values = config[name]
            if values is not None:
                values = torch.tensor(values, dtype=vae.dtype, device=vae.device).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        latents = latents.to(self.vae.dtype)
        if self.latents_std is not None:
            latents = latents * self.latents_std
        latents = latents / self._scale
        for offset in (self._shift, self.latents_mean):
            if offset is not None:
                latents = latents + offset
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return (images,)


def decoder(pipeline: Pipeline, latents: Latents, dtype: torch.dtype) -> Part:
    """The part for latents of that dtype."""
    return Part(
        "decoder",
        Decoder(pipeline.vae).eval(),
        inputs={"latents": Tensors(latents, dtype)},
        outputs={"images": images(pipeline, latents)},
    )


def images(pipeline: Pipeline, latents: Latents) -> Tensors:
    """What comes out: [3, H, W]."""
    vae, factor = pipeline.vae, pipeline.vae_scale_factor
    return Tensors((vae.config.out_channels, latents[1] * factor, latents[2] * factor), vae.dtype)
