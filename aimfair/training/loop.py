"""Training: one loop for every model, of all weights or of those that a mask selects and of nothing else."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aimfair.base.errors import AimfairError, DivergedError, prefixed
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import SILENT, Task
from aimfair.base.seeds import derive_seed, forked_torch_rng, generator
from aimfair.data.images import ImageSet
from aimfair.selective.distributed import is_dtensor, local, shard_of
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import listing
from aimfair.training.backward_steps import BackwardSteps
from aimfair.training.batch_gradient import BatchGradient
from aimfair.training.checkpoint import Checkpoint, Tensors, changing_tensors, copy_tensors
from aimfair.training.execution import prepare
from aimfair.training.feed import Feed, Normalize
from aimfair.training.history import Epoch, History, Position
from aimfair.training.optimizer import build_optimizer, learning_rate
from aimfair.training.predict import predict_logits
from aimfair.training.processes import ONE, Processes
from aimfair.training.samplers import EveryImage, Indices, Sampler, epoch_batches, steps_per_epoch
from aimfair.training.settings import FinetuneSettings, ModelSettings, OptimizerSettings

SKIPS_IN_A_ROW = 5
"""Consecutive steps without a finite gradient that end a training."""

_WORDS = {2: torch.int16, 4: torch.int32}
"""Bytes of an element -> an integer type in which two values are equal if all bits are."""


class Objective(Protocol):
    """Weights the losses of a batch; may have a state that advances with every step."""

    @property
    def depends_on(self) -> object:
        """What the weights depend on besides losses and state, as a JSON value."""

    def weights(self, losses: Tensor, indices: Indices) -> Tensor:
        """float32 [B]: the step minimises the sum of weight times loss, with constant weights.

        Called once or more per step; the state does not change before :meth:`accept`.

        Args:
            losses: float32 [B], detached. indices: int64 [B], into the training images.
        """

    def accept(self) -> None:
        """Advances the state: the step of the last :meth:`weights` was taken."""

    def state(self) -> list[float]:
        """For the checkpoint."""

    def restore(self, state: list[float]) -> None:
        """Restores a value of :meth:`state`."""


Monitor = Callable[[nn.Module, list[Epoch]], None]
"""Sees the model, in evaluation mode, and the epochs so far. To ``measured`` of the last one it may add numbers; what
it raises ends the training."""


@dataclass
class Training:
    """Trains ``model`` in place with the cross-entropy of target labels. Protected labels are never read here.

    On the CPU, with a given number of threads, the result is bit-identical for the same first block of arguments,
    however often the training is interrupted and resumed. A step whose loss or gradient is not finite is skipped and
    counted; :data:`SKIPS_IN_A_ROW` in a row, or all of an epoch, end the training; with ``settings.step_in_backward``
    one does.

    Args:
        model: on the device to train on; frozen parameters do not change.
        validation: gives loss and accuracy after each epoch, without augmentation.
        settings: with :class:`FinetuneSettings` BatchNorm's running statistics are frozen or adapt; else they adapt.
        preprocessing: mean and standard deviation of images, and how the model is run.
        seed: of the order of images, augmentation and dropout.
        mask: the weights to train, default all; tensors without a selected element are frozen.
        sampler: of the images of an epoch; default: every image once.
        objective: default: the mean loss.
        stop_after: epochs after which to stop; learning rates stay those of ``settings.epochs``; default: all.
        monitor: called after each epoch.

        checkpoint: to resume from; the caller removes it when the result is saved.
        name: begins its errors.
        task: advances by steps, :attr:`steps` in all.
        processes: that train the model together, each with its own copy of all arguments. They see the same batches,
            whatever their number.
    """

    model: nn.Module
    train: ImageSet
    validation: ImageSet
    settings: OptimizerSettings
    preprocessing: ModelSettings
    seed: int
    mask: ParameterMask | None = None
    sampler: Sampler | None = None
    objective: Objective | None = None
    stop_after: int | None = None
    monitor: Monitor | None = None

    checkpoint: Checkpoint | None = None
    name: str = "training"
    task: Task = SILENT
    interrupt: Interrupt = NEVER
    log: Log = NOWHERE
    processes: Processes = ONE

    _position: Position = field(init=False, default_factory=Position)
    _kept: Tensors = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.train) < 2 or not len(self.validation):
            raise AimfairError(
                f"{len(self.train)} training and {len(self.validation)} validation images, expected at least 2 and 1"
            )
        if self.mask is not None:
            self._unselected = unselected_digests(self.mask, dict(self.model.named_parameters()))
            self.mask.freeze_unselected(self.model)
        self.optimizer = build_optimizer(self.model, self.settings, self.mask)
        self._batchnorm = self.settings.batchnorm if isinstance(self.settings, FinetuneSettings) else "adapt"
        self._device = next(self.model.parameters()).device
        self._normalize = Normalize(self.preprocessing, self._device)
        prepare(self.model, self.preprocessing)
        self._sampler = self.sampler or EveryImage(len(self.train))
        self._steps = steps_per_epoch(self._sampler.images, self.settings.batch_size)
        self._epochs = self.settings.epochs if self.stop_after is None else self.stop_after
        if not 1 <= self._epochs <= self.settings.epochs:
            raise ValueError(f"stop_after={self.stop_after}: expected 1 to {self.settings.epochs}")
        self._gradient = self._batch_gradient()

    def _batch_gradient(self) -> BatchGradient:
        steps = BackwardSteps(self.optimizer) if self.settings.step_in_backward else None
        if not self.processes.several:
            return BatchGradient(self.model, self.settings.batch_size, steps)
        smallest, ranks = self._sampler.images // self._steps, self.processes.ranks
        if smallest < ranks.size:
            raise AimfairError(
                f"{self.name}: {ranks.size} processes share batches of {smallest} images, expected one for each at"
                " least; raise batch_size, or start fewer processes"
            )
        if self.processes.sharded:
            from aimfair.training.sharded_gradient import ShardedGradient

            return ShardedGradient(self.model, self.settings.batch_size, self.processes, steps)
        from aimfair.training.shared_gradient import SharedGradient

        return SharedGradient(self.model, self.settings.batch_size, self.processes, steps)

    @property
    def steps(self) -> int:
        """Steps of the whole training, by which :attr:`task` advances."""
        return self._epochs * self._steps

    def fit(self) -> History:
        """Trains, or resumes. The model ends in evaluation mode, with the weights of the epoch to keep.

        Raises:
            AimfairError: the training diverges, memory runs out, the checkpoint is damaged, or a weight that is not
                selected has changed.
            Interrupted: after a step, with the checkpoint written.
        """
        self._identity = self.identity()
        self._resume()
        ranks = self.processes.ranks
        if ranks.size > 1:
            ranks.require_same(self._start(), "all need the same files and data")
        feed = Feed(self.train.images, self.settings.augment, self._normalize, ranks=ranks)
        with forked_torch_rng(self._device), feed, closing(self._gradient):
            while self._position.epoch <= self._epochs:
                try:
                    self._run_epoch(feed)
                except Interrupted:
                    raise
                except AimfairError as error:
                    raise type(error)(f"{self.name}: {error}") from error
        history = self._position.history
        if history.kept_epoch < len(history.epochs):
            copy_tensors(self._kept, self.model)
        self.model.eval()
        if self.mask is not None:
            with prefixed(self.name):
                require_unselected_unchanged(self.mask, self._unselected, dict(self.model.named_parameters()))
        return history

    def _resume(self) -> None:
        if self.checkpoint is None:
            return
        found = self.checkpoint.exists
        restored = self.checkpoint.restore(self._identity, self.model, self.optimizer)
        if restored:
            self._position, self._kept = restored
            if self.objective:
                self.objective.restore(self._position.objective)
            self.log("training resumed", epoch=self._position.epoch, step=self._position.step)
            self.task.advance((self._position.epoch - 1) * self._steps + self._position.step)
        elif found:
            self.log.tell(
                f"{self.checkpoint.path.parent}: the training begins again: its checkpoint is of other settings, images"
                " or weights, or of another version of aimfair"
            )

    def _start(self) -> dict[str, str]:
        """What must be equal in all processes before the first step."""
        position = self._position
        return {
            "settings, labels or initial weights": hashlib.sha256(self._identity.encode()).hexdigest()[:12],
            "training images": self.train.digest_of_some(),
            "validation images": self.validation.digest_of_some(),
            "checkpoint": f"epoch {position.epoch}, step {position.step}",
        }

    def _run_epoch(self, feed: Feed) -> None:
        set_training_mode(self.model, self._batchnorm)
        position = self._position
        start = time.monotonic() - position.seconds
        batches = epoch_batches(self._sampler.order(self.seed, position.epoch), self.settings.batch_size)
        plan = [
            (indices, generator("augment", self.seed, position.epoch, step))
            for step, indices in enumerate(batches)
            if step >= position.step
        ]
        with closing(feed.batches(plan)) as inputs:
            for (indices, _), images in zip(plan, inputs, strict=True):
                self._take_step(indices, images)
                position.step += 1
                position.seconds = time.monotonic() - start
                self.task.advance(1, note=f"epoch {position.epoch}, loss {position.mean_loss:.3f}")
                interrupt, due = self.processes.agreed(
                    self.interrupt, self.checkpoint is not None and self.checkpoint.is_due
                )
                if self.checkpoint and (interrupt.requested or due):
                    self._save(self.checkpoint)
                interrupt.check()
        validation_loss, validation_accuracy = self._validate()
        if not math.isfinite(validation_loss):
            raise DivergedError(
                f"epoch {position.epoch}: the validation loss is infinite: the training diverges; choose a lower lr"
            )
        epoch = Epoch(
            epoch=position.epoch,
            lr=learning_rate(self.settings, position.epoch, self._steps - 1, self._steps),
            train_loss=position.mean_loss,
            train_accuracy=position.accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            seconds=round(time.monotonic() - start, 3),
        )
        if self.monitor:
            self.monitor(self.model, [*self._position.history.epochs, epoch])
        self.log("epoch", **epoch.model_dump())
        self._finish_epoch(epoch)

    def _save(self, checkpoint: Checkpoint) -> None:
        if checkpoint.of_all or self.processes.ranks.leads:
            self._position.objective = self.objective.state() if self.objective else []
            checkpoint.save(self._identity, self._position, self.model, self.optimizer, self._kept)

    def _take_step(self, indices: Indices, images: Tensor) -> None:
        """``images``: float32 [B, 3, H, W], augmented and normalised, of this process's share of ``indices``."""
        position, share = self._position, self.processes.ranks.share(len(indices))
        target = torch.from_numpy(self.train.target[indices[share]]).to(self._device)
        weigh = partial(self.objective.weights, indices=indices) if self.objective else None
        seed = derive_seed("dropout", self.seed, position.epoch, position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, position.epoch, position.step, self._steps)
        result = self._gradient(images, target, seed, weigh, len(indices))
        if not result.is_finite:
            self._skip_step()
            return
        if not self._gradient.takes_steps:
            self.optimizer.step()
        if self.objective:
            self.objective.accept()
        position.add(result.loss, result.correct, len(indices))

    def _skip_step(self) -> None:
        position, culprit = self._position, self._gradient.not_finite()
        where = f"epoch {position.epoch}, step {position.step + 1} of {self._steps}"
        if self._gradient.takes_steps:
            raise DivergedError(
                f"{where}: {culprit} is NaN or infinite, and with step_in_backward such a step cannot be skipped;"
                " choose a lower lr, or set step_in_backward to false"
            )
        self._gradient.undo()
        position.skipped_in_a_row += 1
        position.history.skipped_steps += 1
        whole_epoch = not position.seen and position.step + 1 == self._steps
        if whole_epoch or position.skipped_in_a_row == SKIPS_IN_A_ROW:
            which = "every step of the epoch" if whole_epoch else f"{SKIPS_IN_A_ROW} steps in a row"
            raise DivergedError(
                f"{where}: {which} gave NaN or infinity, now {culprit}: the training diverges; choose a lower lr"
            )
        self.log.warn(f"{where}: skipped, {culprit} is NaN or infinite")

    def _validate(self) -> tuple[float, float]:
        """Mean cross-entropy and accuracy."""
        scores = predict_logits(
            self.model, self.validation, self._normalize, self.settings.batch_size, ranks=self.processes.ranks
        )
        target = torch.from_numpy(self.validation.target)
        return F.cross_entropy(scores, target).item(), (scores.argmax(1) == target).double().mean().item()

    def _finish_epoch(self, epoch: Epoch) -> None:
        history = self._position.history
        history.epochs.append(epoch)
        if self.settings.keep == "last":
            history.kept_epoch = epoch.epoch
        elif (
            not history.kept_epoch
            or epoch.validation_accuracy > history.epochs[history.kept_epoch - 1].validation_accuracy
        ):
            history.kept_epoch = epoch.epoch
            self._kept = {name: tensor.clone() for name, tensor in changing_tensors(self.model).items()}
        self._position = self._position.next_epoch()

    def identity(self) -> str:
        """Digests of what the result depends on, before :meth:`fit`: of everything but the initial weights, and after a
        point of these; nothing for a sharded model. To be compared by :func:`same_training`.

        Images are identified by their ids; what else decides their pixels, or the weights of a sharded model, belongs
        in the checkpoint's ``inputs``.
        """
        groups = self.optimizer.param_groups
        facts = {
            "inputs": self.checkpoint.inputs if self.checkpoint else "",
            "settings": self.settings.of_result,
            "computation": self.preprocessing.computation,
            "optimizer": (type(self.optimizer).__name__, [group.get("mask_digest") for group in groups]),
            "seed": self.seed,
            "epochs": self._epochs,
            "batchnorm": self._batchnorm,
            "sizes": [images.images.shape for images in (self.train, self.validation)],
            "ids": [images.ids for images in (self.train, self.validation)],
            "targets": [images.target.tolist() for images in (self.train, self.validation)],
            "sampler": (type(self._sampler).__name__, self._sampler.depends_on),
            "objective": (type(self.objective).__name__, self.objective.depends_on) if self.objective else None,
        }
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        state = self.model.state_dict()
        if any(map(is_dtensor, state.values())):
            return f"{digest}."
        weights = hashlib.sha256()
        for name, tensor in state.items():
            weights.update(name.encode())
            weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return f"{digest}.{weights.hexdigest()}"


def set_training_mode(model: nn.Module, batchnorm: Literal["freeze", "adapt"]) -> None:
    """Training mode, with ``freeze`` except for BatchNorm, whose scale and shift are still tuned."""
    model.train()
    if batchnorm == "freeze":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


# -- unselected weights ------------------------------------------------------------------------------------------------


def unselected_digests(mask: ParameterMask, parameters: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Parameter -> SHA-256 of the bits of its elements that are not selected.

    Takes memory for one tensor at a time, where a copy of the weights would take as much as they do. Tensors that are
    selected as a whole are omitted. Of sharded parameters: of the part that this process holds.
    """
    digests = {}
    for name, nnz, numel in zip(mask.names, mask.nnz_per_tensor, mask.numels, strict=True):
        if nnz < numel:
            shard, part = shard_of(name, parameters[name]), local(parameters[name]).detach().contiguous().view(-1)
            bits = part.view(_WORDS[part.element_size()])
            if nnz:
                bits = bits.masked_fill(mask.bool_of(name).view(-1)[shard.begin : shard.end], 0)
            digests[name] = hashlib.sha256(bits.cpu().view(-1).view(torch.uint8).numpy().data).digest()
    return digests


def require_unselected_unchanged(
    mask: ParameterMask, before: Mapping[str, bytes], parameters: Mapping[str, Tensor]
) -> None:
    """Raises unless unselected elements kept their bits.

    Args:
        before: their :func:`unselected_digests` before the training.

    Raises:
        AimfairError: naming the parameters in which an unselected element has changed.
    """
    after = unselected_digests(mask, parameters)
    if moved := [name for name in after if after[name] != before[name]]:
        raise AimfairError(
            f"unselected elements of {listing(moved)} have changed; expected a model that does not change its weights"
            " itself"
        )
