"""What a report is made from; missing parts are None or empty, and the page says so."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.data.images import ImageSet, Splits
from aimfair.evaluation.flips import Flips
from aimfair.evaluation.results import Results
from aimfair.generation.summary import GenerationSummary
from aimfair.prompts.diversity import Diversity
from aimfair.report.tuning_section import Tuning
from aimfair.selective.mask import ParameterMask
from aimfair.training.history import History

Pixels = npt.NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""

PER_GROUP = 6
"""Sample images of each group."""

PAIRS_OF_CLASS = 4
"""Sample pairs of each class."""

_LARGEST, _SMALL = 160, 64
"""Pixels of the longer side: twice the size on the page, for dense screens; and up to which an image is lossless."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Synthetic:
    """A generated image and its prompt."""

    pixels: Pixels
    text: str


@dataclass(frozen=True)
class Pair:
    """A held-out pair.

    Attributes:
        images: for each protected value. text: the first prompt.
        source: the real image that they were made from, None if from none.
        predicted: method -> for each protected value the class that its model of the first seed predicts.
    """

    y: int
    images: Sequence[Pixels]
    text: str
    predicted: Mapping[str, Sequence[int]]
    source: Pixels | None = None


@dataclass(frozen=True)
class Replies:
    """Replies of a language model over the lifetime of a run, including for prompts that were replaced since.

    Attributes:
        number: of replies.
        accepted: templates.
        refused: reason -> templates, or replies as a whole.
        tokens_in, tokens_out: as the endpoint or the model counts them; 0 if it does not.
    """

    number: int
    accepted: int
    refused: Mapping[str, int]
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Material:
    """
    Attributes:
        settings: config.yaml.
        diversity: of the prompts; None without prompts.
        replies: of the language model that wrote the prompts; None without one.
        synthetic: group (y, a) -> a few images of the balanced set.
        synthetic_images: images in the balanced set.
        generation: how many images were made and rejected, and how fast; None if unknown.
        histories: method ("biased" is the first training) -> seed -> history.
        masks: method -> seed -> mask.
        stage_seconds: stage -> seconds it took, in order.
        tuned: method -> its trials, of methods whose settings were tuned.
        flips: on held-out pairs; None: there are none. pairs: a few of them.
    """

    config: Config
    settings: str
    results: Results
    splits: Splits
    diversity: Diversity | None
    replies: Replies | None
    synthetic: Mapping[tuple[int, int], Sequence[Synthetic]]
    synthetic_images: int
    generation: GenerationSummary | None
    histories: Mapping[str, Mapping[int, History]]
    masks: Mapping[str, Mapping[int, ParameterMask]]
    stage_seconds: Mapping[str, float]
    tuned: Mapping[str, Tuning] = field(default_factory=dict)
    flips: Flips | None = None
    pairs: Sequence[Pair] = ()


def choose(rows: Sequence[Row], keys: Sequence[str], *purpose: int | str) -> list[Row]:
    """At most ``PER_GROUP`` random rows, with distinct keys as long as there are any."""
    order = generator("report", "samples", *purpose).permutation(len(rows))
    seen: set[str] = set()
    first: list[int] = []
    repeated: list[int] = []
    for i in order:
        (repeated if keys[i] in seen else first).append(int(i))
        seen.add(keys[i])
    return [rows[i] for i in (first + repeated)[:PER_GROUP]]


def real_samples(images: ImageSet, y: int, a: int) -> list[Pixels]:
    """A few images of the group (y, a)."""
    indices = np.flatnonzero((images.target == y) & (images.protected == a)).tolist()
    chosen = choose(indices, [images.ids[i] for i in indices], "real", y, a)
    return [np.asarray(images.images[i]) for i in chosen]


def data_uri(pixels: Pixels) -> str:
    """The image, no larger than it is shown: small ones losslessly as PNG, large ones as JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    kind, options = ("png", {"optimize": True}) if max(image.size) <= _SMALL else ("jpeg", {"quality": 88})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
