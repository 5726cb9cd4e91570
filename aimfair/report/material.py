"""What a report is made from; what is missing is left out, and the page says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.evaluation.results import Results
from aimfair.generation.summary import GenerationSummary
from aimfair.prompts.diversity import Diversity
from aimfair.report.samples import Picture
from aimfair.selective.mask import ParameterMask
from aimfair.training.history import History


@dataclass(frozen=True)
class Synthetic:
    """One generated image and the text that asked for it."""

    picture: Picture
    text: str


@dataclass(frozen=True)
class Replies:
    """What a language model was asked for in the whole life of a run, prompts that were replaced since among it.

    Attributes:
        number: of replies.
        accepted: templates.
        refused: reason -> templates, or replies as a whole.
        tokens_in, tokens_out: as the endpoint or the model counts them; 0 where nobody did.
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
        settings: the text of config.yaml.
        diversity: how varied the prompts are; None if the run holds none.
        replies: of the language model that wrote the prompts; None where none was asked.
        synthetic: group (y, a) -> a few images of the balanced set.
        synthetic_images: images in the balanced set.
        generation: how many were made and rejected, and how fast; None: nobody knows.
        histories: method ("biased" is the first training) -> seed -> how the training went.
        masks: method -> seed -> mask.
        stage_seconds: stage -> seconds it took, in order.
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
