"""What a family of text-to-image models defines, and the modules that families share: text encoders and decoder."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Engine, Part, Tensors


class StandIn(nn.Module):
    """Replaces a module of a pipeline: has its configuration, but runs an engine instead of weights.

    Args:
        module: the module to replace.
        part: the part of the engine to run.
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
        """Pipelines enter it around each call, for caches of activations, which engines do not have."""
        return nullcontext()

    def refuse(self, others: dict[str, Any]) -> None:
        """Refuses arguments that the engine would ignore.

        Raises:
            AimfairError: one has a value.
        """
        if unknown := [name for name, value in others.items() if name != "return_dict" and value not in (None, {})]:
            raise AimfairError(f"generate.model needs {', '.join(unknown)}, which only --generate.engine eager takes")


LAST, PENULTIMATE = "last_hidden_state", "penultimate_hidden_state"
"""Outputs [B, L, D] of the last and of the penultimate layer."""

POOLED, PROJECTED = "pooler_output", "text_embeds"
"""Outputs [B, D]: the pooled text, without and with CLIP's projection."""


class TextEncoder(nn.Module):
    """A text encoder of transformers with the given outputs, named as above."""

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
    """The part of a text encoder, for ``length`` tokens."""
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
    """The output of a text encoder as pipelines read it: by name, by index, or as the penultimate hidden state."""

    def __init__(self, outputs: dict[str, Tensor]):
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        if name == "hidden_states":
            return self._outputs[PENULTIMATE], None
        return self._outputs[name]

    def __getitem__(self, index: int) -> Tensor:
        return list(self._outputs.values())[index]


class EncoderStandIn(StandIn):
    """Replaces a text encoder.

    Args:
        outputs: of its part; first the one that pipelines take by index.
    """

    def __init__(self, module: Any, engine: Engine, part: str, outputs: tuple[str, ...]):
        super().__init__(module, engine, part)
        self._outputs = outputs

    def forward(self, tokens: Tensor, output_hidden_states: bool = False, **others: Any) -> Encoded:
        self.refuse(others)
        return Encoded(dict(zip(self._outputs, self.run(tokens.to(self.device)), strict=True)))


Pipeline = Any
"""A pipeline of diffusers, untyped."""

Latents = tuple[int, int, int]
"""Shape of the latents of one image: channels, rows, columns."""


class Vocabulary(NamedTuple):
    """The tokenizer of a text encoder.

    Attributes:
        tokenizer: of transformers.
        length: tokens that the encoder takes, including those for beginning and end, and of ``wrap``.
        wrap: a prompt -> the text that the tokenizer gets, such as a chat with the prompt in it.
    """

    tokenizer: Any
    length: int
    wrap: Callable[[str], str] = str


class Family(ABC):
    """A family of models.

    Attributes:
        pipeline: the class in diffusers and in ``model_index.json``.
        models: the models, for messages.
        components: the required folders of a model.
        optional: the folders that a model may lack.
        without: arguments that keep diffusers from loading what generation does not need.
        denoiser: the component that runs at every step.
        stand_in: what replaces it.
        encoders: possible text encoders of an engine -> the outputs that the pipeline reads. Others, those that are
            language models or take a mask, stay in PyTorch: they run once per prompt.
        embeddings: names, as arguments of the pipeline, of what :meth:`embed` returns; those for the negative prompt
            have the prefix ``negative_``.
        own_scheduler: whether models work only with the kind of scheduler that they were trained with.
        steers_away: whether there are negative prompts.
        halves: how a step with guidance runs the denoiser: on one batch, negative prompts or prompts first, or in two
            calls.
        full_latents: whether latents are float32 in any dtype.
        no_single_step: classes of schedulers with which diffusers makes no image in one step.
        small_decoders: whether an AutoencoderTiny can take the place of its autoencoder.
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
    halves: ClassVar[Literal["negative first", "prompt first", "apart"]] = "negative first"
    full_latents: ClassVar[bool] = False
    no_single_step: ClassVar[tuple[str, ...]] = ()
    small_decoders: ClassVar[bool] = True

    @abstractmethod
    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        """The latents of an image with ``render_size`` pixels along each side; None: the model's default.

        Raises:
            AimfairError: the model does not support this size.
        """

    @abstractmethod
    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        """The modules that generate images with such latents: denoiser, decoder, text encoders."""

    @abstractmethod
    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        """Text encoder -> its tokenizer, for every text encoder of the model."""

    @abstractmethod
    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        """The embeddings of a prompt, in the order of :attr:`embeddings`; each [1, ...]."""

    @abstractmethod
    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        """Whether guidance at this scale also runs the denoiser on the negative prompt."""

    def embed_negative(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        """As :meth:`embed`, of a negative prompt."""
        return self.embed(pipeline, text)

    def batch(self, embedded: Sequence[tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """The embeddings of several prompts as the pipeline takes them, in the order of :attr:`embeddings`."""
        return tuple(torch.cat(tensors) for tensors in zip(*embedded, strict=True))

    def options(self, steps: int, scale: float) -> dict[str, Any]:
        """The guidance scale and what else the pipeline must be told."""
        return {"guidance_scale": scale}

    def arrange(self, noise: Tensor) -> Tensor:
        """Noise [B, C, h, w] in the pipeline's layout of latents."""
        return noise

    def replace(self, pipeline: Pipeline, engine: Engine) -> None:
        """Replaces the pipeline's modules by the engine, and drops their weights."""
        setattr(pipeline, self.denoiser, self.stand_in(getattr(pipeline, self.denoiser), engine, "denoiser"))
        for name in self._in_engines(pipeline):
            encoder = getattr(pipeline, name)
            setattr(pipeline, name, EncoderStandIn(encoder, engine, name, self.encoders[name]))
        pipeline.vae = None

    def text_encoders(self, pipeline: Pipeline) -> tuple[Part, ...]:
        """The text encoders among :meth:`parts`."""
        vocabularies = self.vocabularies(pipeline)
        return tuple(
            text_encoder(getattr(pipeline, name), name, vocabularies[name].length, self.encoders[name])
            for name in self._in_engines(pipeline)
        )

    def _in_engines(self, pipeline: Pipeline) -> list[str]:
        """The text encoders of this model that engines run."""
        return [name for name in self.vocabularies(pipeline) if name in self.encoders]


def chat(tokenizer: Any, **options: Any) -> Callable[[str], str]:
    """A prompt -> a chat of one message by the tokenizer's template, as diffusers makes it."""

    def wrap(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        wrapped: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        return wrapped

    return wrap


def require_multiple(found: int, multiple: int, own: int) -> None:
    """Checks ``generate.render_size``.

    Raises:
        AimfairError: ``found`` is not a multiple of ``multiple``.
    """
    if found % multiple:
        raise AimfairError(
            f"generate.render_size: found {found}, expected a multiple of {multiple} for generate.model (its"
            f" default is {own})"
        )


class Decoder(nn.Module):
    """Latents [B, C, h, w] after the last step -> pixels [B, 3, H, W], about -1 to 1."""

    latents_std: Tensor | None
    latents_mean: Tensor | None

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        config = vae.config
        self._scale, self._shift = config.scaling_factor, config.get("shift_factor")
        for name in ("latents_std", "latents_mean"):  # per channel; few models have them
            values = config.get(name)
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
    """The decoder, for latents of the given dtype."""
    return Part(
        "decoder",
        Decoder(pipeline.vae).eval(),
        inputs={"latents": Tensors(latents, dtype)},
        outputs={"images": images(pipeline, latents)},
    )


def images(pipeline: Pipeline, latents: Latents) -> Tensors:
    """The decoder's output, [3, H, W]."""
    factor = pipeline.vae_scale_factor
    return Tensors((3, latents[1] * factor, latents[2] * factor), pipeline.vae.dtype)
