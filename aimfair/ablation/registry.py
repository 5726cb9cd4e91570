"""The ablations by name. Importing this file loads none of them: the command line shows names and descriptions."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from aimfair.ablation.options import Options
    from aimfair.ablation.outcomes import Findings, Outcomes
    from aimfair.ablation.plan import Parent, Plan
    from aimfair.config import Config

ABLATIONS = {
    "density": "one method at several densities, each at several learning rates if asked",
    "criteria": "criterion x rule x granularity at one density",
    "minority-ratio": "the minority ratio of the biased synthetic set",
    "images": "the number of balanced synthetic images",
    "prompts": "plain against contextual prompts",
    "generators": "settings of the text-to-image model by what they buy: speed, image statistics and fairness",
    "selective": "selective against full fine-tuning: metrics, time and memory",
    "blocks": "the method with one block of the model frozen at a time",
    "premise": "whether sensitivity predicts the effect of tuning a block alone on equalized odds",
}
"""Name -> what it varies."""

RENAMED = {"bias-ratio": "minority-ratio"}
"""Former name -> name."""


class Ablation(Protocol):
    """The functions of each ablation's module."""

    def read(self, options: "Options", config: "Config") -> Any:
        """The request, from the flags; raises ConfigError before any work."""

    def plan(self, parent: "Parent", request: Any) -> "Plan":
        """The arms to compare."""

    def findings(self, parent: "Parent", request: Any, outcomes: "Outcomes") -> "Findings":
        """What the finished arms show."""


def load(name: str) -> Ablation:
    from aimfair.ablation import (
        blocks,
        criteria,
        density,
        generators,
        images,
        minority_ratio,
        premise,
        prompts,
        selective,
    )

    modules: dict[str, Ablation] = {
        "density": density,
        "criteria": criteria,
        "minority-ratio": minority_ratio,
        "images": images,
        "prompts": prompts,
        "generators": generators,
        "selective": selective,
        "blocks": blocks,
        "premise": premise,
    }
    return modules[name]
