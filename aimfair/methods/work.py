"""What a method trains with: settings, images, models, and what a run offers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.data.images import ImageSet, Splits
from aimfair.selective.mask import ParameterMask
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.history import History
from aimfair.training.loop import Monitor, Objective, Training
from aimfair.training.processes import ONE, Processes
from aimfair.training.samplers import Indices, Sampler, groups_of
from aimfair.training.settings import ModelSettings, OptimizerSettings

Trained = tuple[nn.Module, History]
"""A model in evaluation mode, and how its training went."""


@dataclass(frozen=True)
class Work:
    """One method at one seed.

    Attributes:
        name: for progress and errors, for example "finetune 100 jtt".
        settings: of its training.
        preprocessing: of images, and how the model is run.
        folder: of the result, of checkpoints, and of the method's records.
        splits, balanced: the real images, and the balanced synthetic ones; loaded at the first call.
        initial: a new model with the initial weights of the biased one, on the device to train on.
        biased: the biased model.
        mask: of the given model, for methods that tune.
        inputs: digest of everything that the result depends on, for checkpoints.
        monitor: of the training of the whole schedule, not of one that is stopped early.
        processes: that do the work together; process 0 alone writes files.
    """

    name: str
    settings: OptimizerSettings
    preprocessing: ModelSettings
    seed: int
    folder: Path
    splits: Callable[[], Splits]
    balanced: Callable[[], ImageSet]
    initial: Callable[[], nn.Module]
    biased: Callable[[], nn.Module]
    mask: Callable[[nn.Module], ParameterMask]

    inputs: str = ""
    checkpoint_seconds: float = 30.0
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    interrupt: Interrupt = NEVER
    log: Log = NOWHERE
    monitor: Monitor | None = None
    processes: Processes = ONE

    def groups(self, images: ImageSet) -> tuple[Indices, list[str]]:
        """:func:`groups_of` these images and the names of the groups; warns of a group without images."""
        splits = self.splits()
        counts = images.group_counts(*splits.shape)
        present = []
        for (y, a), count in np.ndenumerate(counts):
            name = f"{splits.target_names[y]}, {splits.protected_names[a]}"
            if count:
                present.append(name)
            else:
                self.log.warn(f"{self.name}: no image of the group {name}: the others are balanced without it")
        return groups_of(images), present

    def checkpoint(self, folder: Path | None = None) -> Checkpoint:
        return self.processes.checkpoint(folder or self.folder, self.checkpoint_seconds, self.inputs)

    def training(
        self,
        model: nn.Module,
        train: ImageSet,
        *,
        settings: OptimizerSettings | None = None,
        mask: ParameterMask | None = None,
        sampler: Sampler | None = None,
        objective: Objective | None = None,
        checkpoint: Checkpoint | None = None,
        stop_after: int | None = None,
    ) -> Training:
        """A training of ``model``, with the settings of the method unless others are given."""
        return Training(
            model,
            train,
            self.splits().validation,
            settings or self.settings,
            self.preprocessing,
            self.seed,
            mask=mask,
            sampler=sampler,
            objective=objective,
            stop_after=stop_after,
            monitor=self.monitor if stop_after is None else None,
            checkpoint=checkpoint or self.checkpoint(),
            name=self.name,
            interrupt=self.interrupt,
            log=self.log,
            processes=self.processes,
        )

    def fit(self, training: Training, name: str = "") -> Trained:
        """Fits and shows the progress; ``name`` says which training of the method it is."""
        with self.progress.task(f"{self.name} {name}".strip(), training.steps) as training.task:
            return training.model, training.fit()
