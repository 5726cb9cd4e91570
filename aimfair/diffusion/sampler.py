"""The interface of text-to-image models, as generation and its reports see it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from aimfair.base.settings import Record


class Samples(NamedTuple):
    """B images.

    Attributes:
        images: uint8 [B, H, W, 3], RGB.
        finite: bool [B]; False where the model returned NaN or infinite values.
    """

    images: npt.NDArray[np.uint8]
    finite: npt.NDArray[np.bool_]


class Sampler(Protocol):
    """A loaded text-to-image model.

    Attributes:
        seconds: part of the work -> seconds so far; empty if nothing is measured.
        small_decoders: whether it has a decoder that a smaller one, ``generate.decoder``, could take the place of.
    """

    @property
    def seconds(self) -> Mapping[str, float]: ...

    @property
    def small_decoders(self) -> bool: ...

    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """One image for each prompt and seed, deterministically; seeds are in [0, 2^63)."""


@runtime_checkable
class Editor(Protocol):
    """A loaded image-to-image model, which knows the images that it starts from; attributes as of :class:`Sampler`."""

    @property
    def seconds(self) -> Mapping[str, float]: ...

    @property
    def small_decoders(self) -> bool: ...

    def edit(self, texts: Sequence[str], seeds: Sequence[int], sources: Sequence[str]) -> Samples:
        """As :meth:`Sampler.sample`; ``sources`` name the image that each begins from."""


class Comparison(Record):
    """Images made with shortcuts against those of the plain model in engine eager.

    Attributes:
        shortcuts: the settings that are compared, in JSON types.
        images: their number, made in one batch.
        largest, mean: difference of a pixel's channel, in grey levels of 255.
        ratio: of the speeds; 2: twice as many images per second as the plain model.
    """

    shortcuts: dict[str, Any]
    images: int
    largest: int
    mean: float
    ratio: float

    def __str__(self) -> str:
        names = ", ".join(f"{name} {value}" for name, value in self.shortcuts.items())
        return (
            f"{names}: {self.ratio:.1f} times the speed of the plain model; pixels differ by {self.mean:.1f} grey"
            f" levels on average, {self.largest} at most"
        )
