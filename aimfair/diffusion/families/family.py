"""What is particular to a family of text-to-image models, as :mod:`aimfair.diffusion.text_to_image` asks it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.interface import Engine, Part
from aimfair.diffusion.families.stand_in import StandIn
from aimfair.diffusion.families.text_encoder import EncoderStandIn, text_encoder

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
        """Puts the engine in the place of the pipeline's modules, whose weights it then no longer holds."""
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
