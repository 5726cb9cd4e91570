"""The check of attributes: does an image show the class and the protected value that it should, each on its own?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.generation.filter_settings import AttributeCheck
from aimfair.generation.filters.classifiers import Classifier, columns, fingerprint, locate, open_model, shortened
from aimfair.generation.filters.towers import Towers
from aimfair.generation.plan import Group
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.shown import UNCLEAR, Attribute, reason
from aimfair.prompts.grammar import plain_text
from aimfair.prompts.settings import PromptSettings


def facts(settings: GenerateSettings, prompts: PromptSettings) -> dict[str, Any]:
    """Attribute -> what the decisions depend on.

    Raises:
        AimfairError: a model is missing.
    """
    return {
        attribute: {
            "model": fingerprint(_locate(attribute, check, settings)),
            "labels": check.labels or texts_of(attribute, prompts),
            "least": check.least,
        }
        for attribute, check in settings.filters.attributes.items()
    }


def texts_of(attribute: Attribute, prompts: PromptSettings) -> list[list[str]]:
    """For each value of an attribute, the prompts without contexts that show it, with every word for the other one."""
    values = prompts.targets if attribute == "target" else prompts.protected
    others = prompts.protected if attribute == "target" else prompts.targets
    pairs = [[(word, other) for word in words for of_value in others for other in of_value] for words in values]
    if attribute == "protected":
        pairs = [[(other, word) for word, other in of_value] for of_value in pairs]
    return [list(dict.fromkeys(plain_text(prompts.template, *pair) for pair in of_value)) for of_value in pairs]


class Attributes:
    """Rejects images that show another value of an attribute, or the right one with too little probability.

    Args:
        prompts: their words describe the values to CLIP and SigLIP.

    Raises:
        AimfairError: a model cannot be used, or has no such labels.
    """

    def __init__(self, settings: GenerateSettings, prompts: PromptSettings, device: torch.device):
        self._checks: dict[Attribute, tuple[AttributeCheck, _Zeroshot | _Labels]] = {}
        for attribute, check in settings.filters.attributes.items():
            key = _key(attribute)
            model = open_model(f"{key}.model", _locate(attribute, check, settings), device)
            labels = check.labels or texts_of(attribute, prompts)
            if isinstance(model, Towers):
                self._checks[attribute] = check, _Zeroshot(model, labels)
            else:
                if not check.labels:
                    raise AimfairError(
                        f"{key}.labels: missing; expected for each of the {len(labels)} values the labels of the"
                        f" classifier that stand for it, of {shortened(model.labels)}"
                    )
                self._checks[attribute] = check, _Labels(f"{key}.labels", model, labels)

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """As :func:`aimfair.generation.shown.reason` words it; see :class:`ImageFilter`."""
        shown: dict[Attribute, list[int]] = {}
        for attribute, (check, model) in self._checks.items():
            probabilities = model.probabilities(images)
            own = torch.tensor([group[0 if attribute == "target" else 1] for group in groups])
            likeliest = probabilities.argmax(1)
            sure = probabilities.gather(1, own[:, None])[:, 0] >= check.least
            shown[attribute] = torch.where((likeliest == own) & ~sure, UNCLEAR, likeliest).tolist()
        return [
            reason(group, {name: values[row] for name, values in shown.items()}) for row, group in enumerate(groups)
        ]


class _Zeroshot:
    """Values described by texts."""

    def __init__(self, towers: Towers, texts: Sequence[Sequence[str]]):
        self._towers, self._directions = towers, towers.directions(texts)

    def probabilities(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """[B, values], on the CPU."""
        return (self._towers.scale * self._towers.cosines(images, self._directions)).softmax(1)


class _Labels:
    """Values that labels of a classifier stand for."""

    def __init__(self, key: str, classifier: Classifier, labels: Sequence[Sequence[str]]):
        self._classifier, self._columns = classifier, columns(key, classifier, labels)

    def probabilities(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """[B, values], on the CPU: the sum of those of its labels, or the largest if an image can have several."""
        numbers, done = self._classifier.numbers(images), self._classifier.probabilities
        if self._classifier.several:
            present = numbers if done else numbers.sigmoid()
            absent = 1 - numbers if done else (-numbers).sigmoid()  # not of the former, which rounds to 1
            signed = [[(present if sign > 0 else absent)[:, column] for column, sign in one] for one in self._columns]
            return torch.stack([torch.stack(of_value, 1).amax(1) for of_value in signed], 1)
        shares = numbers if done else numbers.softmax(1)
        return torch.stack([shares[:, [column for column, _ in of_value]].sum(1) for of_value in self._columns], 1)


def _key(attribute: Attribute) -> str:
    return f"generate.filters.{attribute}"


def _locate(attribute: Attribute, check: AttributeCheck, settings: GenerateSettings) -> Path:
    return locate(f"{_key(attribute)}.model", check.model, settings.allow_download)
