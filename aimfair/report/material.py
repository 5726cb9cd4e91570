"""What a report is made from; what is missing is left out, and the page says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.evaluation.results import Results
from aimfair.generation.prompts import Prompt
from aimfair.report.samples import Picture
from aimfair.selective.mask import ParameterMask
from aimfair.training.history import History


@dataclass(frozen=True)
class Synthetic:
    """One generated image and the text that asked for it."""

    picture: Picture
    text: str


@dataclass(frozen=True)
class Material:
    """
    Attributes:
        settings: the text of config.yaml.
        prompts: every prompt of the run.
        synthetic: group (y, a) -> a few images of the balanced set.
        synthetic_images: images in the balanced set.
        histories: method ("biased" is the first training) -> seed -> how the training went.
        masks: method -> seed -> mask.
        stage_seconds: stage -> seconds it took, in order.
    """

    config: Config
    settings: str
    results: Results
    splits: Splits
    prompts: Sequence[Prompt]
    synthetic: Mapping[tuple[int, int], Sequence[Synthetic]]
    synthetic_images: int
    histories: Mapping[str, Mapping[int, History]]
    masks: Mapping[str, Mapping[int, ParameterMask]]
    stage_seconds: Mapping[str, float]
