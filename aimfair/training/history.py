"""The history and the position of a training."""

from pathlib import Path
from typing import Self

from pydantic import Field

from aimfair.base.files import way_out, write_json
from aimfair.base.lines import read_record
from aimfair.base.settings import Record

HISTORY = "history.json"
"""File name, in the folder of a trained model."""


class Epoch(Record, frozen=False):
    """One epoch. Losses are mean cross-entropy, accuracies shares; those of training are of augmented images.

    ``measured``: numbers of the training's monitor, by name.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    measured: dict[str, float] = Field(default_factory=dict)


class History(Record, frozen=False):
    """A finished training.

    Attributes:
        epochs: in order, numbered from 1.
        kept_epoch: the epoch whose weights the model has.
        skipped_steps: not taken, as loss or gradient was not finite.
        reads_groups: whether the method used group labels of real images.
        notes: further numbers of a method, by name.
    """

    epochs: list[Epoch] = Field(default_factory=list)
    kept_epoch: int = 0
    skipped_steps: int = 0
    reads_groups: bool = False
    notes: dict[str, float] = Field(default_factory=dict)

    def save(self, folder: Path) -> None:
        write_json(folder / HISTORY, self.model_dump())

    @classmethod
    def load(cls, folder: Path) -> "History | None":
        """Reads what :meth:`save` wrote; None if there is nothing.

        Raises:
            AimfairError: the file is damaged.
        """
        path = folder / HISTORY
        return read_record(path, cls, way_out(path, "train again")) if path.exists() else None


class Position(Record, frozen=False):
    """The position between two steps: beside tensors all that a checkpoint needs.

    Attributes:
        epoch: of the next step, from 1.
        step: completed steps of that epoch.
        loss, correct, seen: sum of losses, correctly classified images and images of those steps.
        skipped_in_a_row: skipped steps since the last one that was taken.
        seconds: spent on that epoch.
        objective: its state.
    """

    epoch: int = 1
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    objective: list[float] = Field(default_factory=list)
    history: History = Field(default_factory=History)

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.seen, 1)

    @property
    def accuracy(self) -> float:
        return self.correct / max(self.seen, 1)

    def add(self, loss: float, correct: int, images: int) -> None:
        """Counts a step that was taken."""
        self.loss += loss
        self.correct += correct
        self.seen += images
        self.skipped_in_a_row = 0

    def next_epoch(self) -> Self:
        return type(self)(epoch=self.epoch + 1, skipped_in_a_row=self.skipped_in_a_row, history=self.history)
