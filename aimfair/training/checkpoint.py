"""The file from which a training that was cut off goes on, to the same bits.

All random choices of a training are functions of its seed and position, so a checkpoint is the weights that are trained
and buffers, optimizer state, the weights to be kept, and the position.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aimfair.base.errors import AimfairError
from aimfair.selective import storage
from aimfair.training.history import Position

KIND, VERSION = "aimfair.checkpoint", 2
"""What a checkpoint file says it is."""

CHECKPOINT = "checkpoint.safetensors"
"""The file, in the folder of a model that is being trained."""

Tensors = dict[str, Tensor]


def changing_tensors(model: nn.Module) -> Tensors:
    """What a training can change, by name, not copied: parameters that require a gradient, and buffers."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def copy_tensors(source: Tensors, model: nn.Module) -> None:
    """Gives ``model`` what :func:`changing_tensors` gave of it, or a copy of that.

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


class Checkpoint:
    """Saves and restores one training.

    Args:
        folder: where the model will be saved; made if absent.
        seconds: between two saves, at least.
        inputs: digest of what the result depends on and the training itself cannot see, such as where its images come
            from; it goes on only from a file with the same.
    """

    def __init__(self, folder: Path, seconds: float, inputs: str = ""):
        self.path = folder / CHECKPOINT
        self.inputs = inputs
        self._seconds = seconds
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def save(self, identity: str, position: Position, model: nn.Module, optimizer: Optimizer, kept: Tensors) -> None:
        """Replaces the file in one step. On the CPU tensors are written from where they are, without a copy.

        Args:
            identity: digest of everything the training's result depends on.
            kept: of the best epoch so far, a copy of what :func:`changing_tensors` gives, or nothing.
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
        self._last = time.monotonic()

    def restore(self, identity: str, model: nn.Module, optimizer: Optimizer) -> tuple[Position, Tensors] | None:
        """``(position, kept)`` of the file, whose state ``model`` and ``optimizer`` then have.

        None if there is no file, or that of another training, which has no use any more: nothing is changed then.

        Raises:
            AimfairError: the file is damaged.
        """
        try:
            tensors, metadata = storage.load(self.path, KIND, VERSION)
            if metadata["identity"] != identity:
                return None
            position = Position.model_validate(metadata["position"])
            copy_tensors(_under("model/", tensors), model)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:
            raise AimfairError(f"{error}; remove it to begin this training again") from error
        state: dict[int, Tensors] = {}
        for name, tensor in _under("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return position, {name: tensor.clone() for name, tensor in _under("kept/", tensors).items()}

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
