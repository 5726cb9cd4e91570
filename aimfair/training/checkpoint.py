"""Checkpoints, from which an interrupted training resumes to the same bits.

Every random choice of a training is a function of its seed and position, so a checkpoint holds the trained weights,
buffers, optimizer state, the weights of the best epoch so far, and the position.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aimfair.base.errors import AimfairError, one_line
from aimfair.selective import storage
from aimfair.training.history import Position

KIND, VERSION = "aimfair.checkpoint", 2
"""Kind and version in the metadata of the file."""

CHECKPOINT = "checkpoint.safetensors"
"""File name, in the folder of the model."""

SHARDED, FOLDERS = "checkpoint.json", ("checkpoint-0", "checkpoint-1")
"""File and folders, of which it names one, of a checkpoint of a sharded training."""

WAY_OUT = "remove it to restart this training"

Tensors = dict[str, Tensor]


def changing_tensors(model: nn.Module) -> Tensors:
    """Name -> tensor, not copied, of what a training can change: parameters that require a gradient, and buffers."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def copy_tensors(source: Tensors, model: nn.Module) -> None:
    """Copies tensors from :func:`changing_tensors`, or copies of them, into ``model``.

    Raises:
        ValueError: other names or shapes than the model's.
    """
    own = changing_tensors(model)
    if own.keys() != source.keys():
        raise ValueError(f"it holds {len(source)} tensors of the model, expected the {len(own)} that are trained")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != source[name].shape:
                raise ValueError(f"{name} is {tuple(source[name].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(source[name])


def same_training(one: str, other: str) -> bool:
    """Whether two identities, of :meth:`Training.identity`, are of one training.

    Those of sharded models lack the digest of the initial weights, which the inputs of the checkpoint then determine.
    """
    (facts, _, weights), (other_facts, _, other_weights) = one.partition("."), other.partition(".")
    return facts == other_facts and (weights == other_weights or not (weights and other_weights))


class Checkpoint:
    """Saves and restores one training; restores that of a sharded training, too.

    Args:
        folder: of the model; created if absent.
        seconds: minimum time between saves.
        inputs: digest of what the result depends on but the training cannot see, such as the origin of its images; only
            a file with the same digest is resumed.
    """

    of_all: ClassVar[bool] = False
    """Whether all processes of a training save it together; else process 0 does."""

    def __init__(self, folder: Path, seconds: float, inputs: str = ""):
        self.path = folder / CHECKPOINT
        self.inputs = inputs
        self._seconds = seconds
        self._last = time.monotonic()

    @property
    def exists(self) -> bool:
        """Whether there is a file, of this training or another, sharded or not."""
        return any(self.path.with_name(name).exists() for name in (CHECKPOINT, SHARDED))

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def save(self, identity: str, position: Position, model: nn.Module, optimizer: Optimizer, kept: Tensors) -> None:
        """Replaces the file atomically; CPU tensors are written without a copy.

        Args:
            identity: digests of everything that the result depends on.
            kept: copy of :func:`changing_tensors` at the best epoch so far, or empty.
        """
        state: dict[int, Mapping[str, object]] = optimizer.state_dict()["state"]
        tensors = {f"model/{name}": tensor for name, tensor in changing_tensors(model).items()}
        tensors |= {f"kept/{name}": tensor for name, tensor in kept.items()}
        tensors |= {
            f"optimizer/{index}/{key}": value
            for index, entry in state.items()
            for key, value in entry.items()
            if isinstance(value, Tensor)
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        storage.save(self.path, KIND, VERSION, tensors, identity=identity, position=position.model_dump())
        self._remove_but({CHECKPOINT})
        self.note_saved()

    def note_saved(self) -> None:
        """The next one is not due at once."""
        self._last = time.monotonic()

    def restore(self, identity: str, model: nn.Module, optimizer: Optimizer) -> tuple[Position, Tensors] | None:
        """Restores ``model`` and ``optimizer``; returns ``(position, kept)``.

        None, with nothing changed, if there is no file or it belongs to another training.

        Raises:
            AimfairError: the file is damaged.
        """
        try:
            tensors, metadata = storage.load(self.path, KIND, VERSION)
        except FileNotFoundError:
            return self._restore_sharded(identity, model, optimizer)
        except ValueError as error:
            raise AimfairError(f"{error}; {WAY_OUT}") from error
        if not same_training(str(metadata.get("identity")), identity):
            return None
        state: dict[int, Tensors] = {}
        try:
            position = Position.model_validate(metadata.get("position"))
            copy_tensors(_under("model/", tensors), model)
            for name, tensor in _under("optimizer/", tensors).items():
                index, _, key = name.partition("/")
                state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        except (ValueError, TypeError, KeyError) as error:
            raise AimfairError(f"{self.path}: not a usable checkpoint: {one_line(error)}; {WAY_OUT}") from error
        return position, {name: tensor.clone() for name, tensor in _under("kept/", tensors).items()}

    def _restore_sharded(
        self, identity: str, model: nn.Module, optimizer: Optimizer
    ) -> tuple[Position, Tensors] | None:
        path = self.path.with_name(SHARDED)
        if not path.exists():
            return None
        from aimfair.training.sharded_checkpoint import restore_shards

        return restore_shards(path, identity, model, optimizer)

    def remove(self) -> None:
        self._remove_but(set())

    def _remove_but(self, names: set[str]) -> None:
        """Removes the checkpoints of all forms in the folder, but what has these names."""
        for name in (CHECKPOINT, SHARDED):
            if name not in names:
                self.path.with_name(name).unlink(missing_ok=True)
        for name in FOLDERS:
            if name not in names:
                shutil.rmtree(self.path.with_name(name), ignore_errors=True)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
