"""flips.json: how often a classifier changes its mind when the protected attribute alone changes.

Measured on the held-out pairs of ``generate.pairs``: the images of a pair have class, contexts and noise in common. A
pair flips if its images are not all predicted as one class, whichever that is. Undefined values are NaN, null in the
file.

Shapes: P pairs, A protected values, Y classes, S seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np

from aimfair.base.files import write_text
from aimfair.base.lines import read_record
from aimfair.base.seeds import generator
from aimfair.base.settings import Record
from aimfair.evaluation.intervals import percentile, resampled_means, student_t, wilson
from aimfair.evaluation.metrics import Integers
from aimfair.evaluation.over_seeds import std
from aimfair.evaluation.results import Difference, Interval, Number
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.methods import BIASED

SCHEMA_VERSION: Final = 1


class FlipResult(Record):
    """A method.

    Attributes:
        seeds: share of the pairs that flip, of the model of each seed. mean, std (ddof 1): over them.
        interval: of the mean, stratified bootstrap over the pairs, percentiles. Where no pair flips at any seed, or
            every one at all, replicates do not differ: Wilson's, at the number of pairs.
        by_class: [Y], the mean for the pairs of each class.
        accuracy: [A], share of the images with each value that are predicted as the class they were made for.
        versus_biased: ``mean`` minus that of the biased model, on the same pairs; None for the biased model itself.
    """

    seeds: list[float]
    mean: float
    std: Number
    interval: Interval
    by_class: list[float]
    accuracy: list[float]
    versus_biased: Difference | None


class Flips(Record):
    """A whole run.

    Attributes:
        protected: name of the attribute.
        confidence: of every interval. replicates: of the bootstrap.
        pairs: [Y], of each class.
        methods: the biased model first, then the methods as configured.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    protected: str
    target_names: list[str]
    protected_names: list[str]
    seeds: list[int]
    default_method: str
    confidence: float
    replicates: int
    pairs: list[int]
    methods: dict[str, FlipResult]

    @property
    def total(self) -> int:
        """Pairs of all classes."""
        return sum(self.pairs)

    def save(self, path: Path) -> None:
        """Replaces ``path``."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            AimfairError: the file is missing or damaged.
        """
        return read_record(path, cls, f"remove it and do: aimfair evaluate --run {path.parent}")


def measure(
    target: Integers, predicted: Mapping[str, Sequence[Integers]], classes: int, settings: EvaluateSettings
) -> dict[str, FlipResult]:
    """The result of each method.

    Args:
        target: int64 [P], the class of each pair; every class has pairs.
        predicted: method -> for each seed int64 [P, A], the predicted class of each image. "biased" is one of them.
        classes: Y.
    """
    flips = {name: np.stack([_flipped(one) for one in of_seeds]) for name, of_seeds in predicted.items()}  # [S, P]
    summed = np.stack([of_seeds.sum(axis=0) for of_seeds in flips.values()])
    resampled = resampled_means(summed, target, settings.replicates, generator("evaluate", "flips"))
    replicates = {name: one / len(flips[name]) for name, one in zip(flips, resampled, strict=True)}
    results = {}
    for name, of_seeds in flips.items():
        seeds, interval = of_seeds.mean(axis=1), percentile(replicates[name], settings.confidence)
        if of_seeds.all() or not of_seeds.any():
            interval = wilson(float(seeds.mean()) * len(target), len(target), settings.confidence)
        right = np.stack([one == target[:, None] for one in predicted[name]])
        results[name] = FlipResult(
            seeds=seeds.tolist(),
            mean=seeds.mean().item(),
            std=std(seeds).item(),
            interval=tuple(interval.tolist()),
            by_class=[of_seeds[:, target == y].mean().item() for y in range(classes)],
            accuracy=right.mean(axis=(0, 1)).tolist(),
            versus_biased=None
            if name == BIASED
            else Difference(
                mean=(seeds - flips[BIASED].mean(axis=1)).mean().item(),
                over_images=percentile(replicates[name] - replicates[BIASED], settings.confidence).tolist(),
                over_seeds=student_t(seeds - flips[BIASED].mean(axis=1), settings.confidence).tolist(),
                support=len(target),
            ),
        )
    return results


def _flipped(predicted: Integers) -> Integers:
    """int64 [P], 1 where the predictions [P, A] of a pair are not all the same."""
    return np.asarray((predicted != predicted[:, :1]).any(axis=1), dtype=np.int64)
