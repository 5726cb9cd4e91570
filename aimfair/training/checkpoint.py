"""The file from which a training that was cut off goes on, to the same bits.

All random choices of a training are functions of its seed and position, so a checkpoint is weights and buffers,
optimizer state, the weights to be kept, and the position.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from aimfair.errors import AimfairError
from aimfair.selective import storage
from aimfair.training.history import Position

KIND, VERSION = "aimfair.checkpoint", 1
"""What a checkpoint file says it is."""

CHECKPOINT = "checkpoint.safetensors"
"""The file, in the folder of a model that is being trained."""

Tensors = dict[str, Tensor]


class Checkpoint:
    """Saves and restores one training.

    Args:
        folder: where the model will be saved; made if absent.
        seconds: between two saves, at least.
    """

    def __init__(self, folder: Path, seconds: float):
        self.path = folder / CHECKPOINT
        self._seconds = seconds
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def save(self, identity: str, position: Position, model: nn.Module, optimizer: Optimizer, kept: Tensors) -> None:
        """Replaces the file in one step.

        Args:
            identity: digest of everything the training's result depends on.
            kept: weights and buffers of the best epoch so far, or nothing.
        """
        state: dict[int, Mapping[str, object]] = optimizer.state_dict()["state"]
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
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
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:
            raise AimfairError(f"{error}; remove it to begin this training again") from error
        model.load_state_dict(_under("model/", tensors))
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
