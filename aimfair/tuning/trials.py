"""The record of a trial, a file of its own, and that of a choice."""

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from aimfair.base.files import write_json
from aimfair.base.lines import read_record
from aimfair.base.settings import Record
from aimfair.evaluation import metrics

Table = list[list[list[int]]]
"""Images of each protected value, class and predicted class: [A, Y, K]."""

_AGAIN = "remove it and do: aimfair tune"


class _File(Record):
    """A record in a file of its own."""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.model_dump())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises AimfairError: the file is missing or damaged."""
        return read_record(path, cls, _AGAIN)


class Point(Record):
    """The objectives after an epoch: worst-group accuracy on held-out synthetic images, accuracy on validation ones."""

    worst: float
    accuracy: float


class Audit(Record):
    """Predictions of real images by group; no choice reads them."""

    validation: Table
    test: Table


class OfSeed(Record):
    """One training of a trial.

    Attributes:
        synthetic: predictions of the held-out images.
        accuracy: on real validation images.
        change: L2 distance of the weights from the biased model's, over the L2 norm of those.
        curve: the objectives after each epoch.
    """

    synthetic: Table
    accuracy: float
    change: float
    curve: list[Point]
    audit: Audit | None = None


class Stopped(Record):
    """A training that was pruned: the objectives after each epoch so far, and the epochs it was to have."""

    curve: list[Point]
    epochs: int


class Trial(_File):
    """
    Attributes:
        values: settings of the method that were tried in place of the given ones; of the first trial none.
        state: of others than complete ones the trainings did not end.
        reason: why they did not.
        stopped: the training in which a trial was pruned; those before it are in ``seeds``.
    """

    number: int
    values: dict[str, Any]
    state: Literal["complete", "pruned", "failed"]
    reason: str | None = None
    stopped: Stopped | None = None
    seeds: list[OfSeed] = Field(default_factory=list)

    def training(self, index: int) -> Stopped | None:
        """How far that of a seed came, by its position; None if there was none."""
        if index < len(self.seeds):
            return Stopped(curve=self.seeds[index].curve, epochs=len(self.seeds[index].curve))
        return self.stopped if index == len(self.seeds) else None

    @property
    def worst(self) -> float:
        """Worst-group accuracy on held-out synthetic images, mean over the seeds."""
        return float(np.mean([metrics.worst_group_accuracy(_counts(one.synthetic)) for one in self.seeds]))

    @property
    def worst_error(self) -> float:
        """Standard error of :attr:`worst`, from the number of images in the worst group."""
        errors = []
        for one in self.seeds:
            counts = _counts(one.synthetic)
            rates, sizes = metrics.by_group(counts), counts.sum(axis=2)
            place = np.unravel_index(int(np.argmin(rates)), rates.shape)
            # of (successes + 1) / (images + 2): a rate of 0 or 1 is no certainty
            smoothed = (rates[place] * sizes[place] + 1) / (sizes[place] + 2)
            errors.append(np.sqrt(smoothed * (1 - smoothed) / sizes[place]))
        return float(np.sqrt(np.mean(np.square(errors)) / len(errors)))

    @property
    def accuracy(self) -> float:
        """On real validation images, mean over the seeds."""
        return float(np.mean([one.accuracy for one in self.seeds]))

    @property
    def change(self) -> float:
        return float(np.mean([one.change for one in self.seeds]))

    def real_worst(self, which: Literal["validation", "test"]) -> list[float]:
        """Worst-group accuracy on real images for each seed; of groups without images nothing is known."""
        tables = [_counts(getattr(one.audit, which)) for one in self.seeds if one.audit is not None]
        return [float(metrics.worst_present_group_accuracy(table)) for table in tables]


class Choice(_File):
    """The settings that were chosen for a method, and the number of their trial."""

    trial: int
    values: dict[str, Any]


def _counts(table: Table) -> metrics.Counts:
    return np.asarray(table, dtype=np.int64)
