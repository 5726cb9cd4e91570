"""Small images and models for the tests of training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aimfair.data.images import ImageSet
from aimfair.training.history import History
from aimfair.training.loop import Training
from aimfair.training.settings import FinetuneSettings, ModelSettings, OptimizerSettings

SIZE = 16

RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}

MODEL = ModelSettings(config=RESNET, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def images(count: int, seed: int = 0, *, bias: float = 0.5, bar: int = 100) -> ImageSet:
    """Noise with a bright bar, upright (class 1) or level (class 0), tinted by the protected attribute.

    Args:
        bias: share of the images whose protected attribute is their class.
        bar: how much brighter than the noise, which goes up to 120; a faint one is harder to learn than the tint.
    """
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, count)
    protected = np.where(rng.random(count) < bias, target, 1 - target)
    pixels = rng.integers(0, 120, (count, SIZE, SIZE, 3))
    for number in range(count):
        place = (slice(None), slice(6, 10)) if target[number] else (slice(6, 10), slice(None))
        pixels[number][place] += bar
        pixels[number, :, :, 2 * protected[number]] += 30
    return ImageSet(pixels.astype(np.uint8), target, protected, tuple(f"{seed}/{number}" for number in range(count)))


TRAIN, VALIDATION = images(42, 1), images(20, 2)


class Net(nn.Module):
    """Convolution, BatchNorm, dropout and a linear layer: everything that has a state or draws random numbers."""

    def __init__(self, seed: int = 0, *, batchnorm: bool = True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = nn.Conv2d(3, 6, 5, stride=2)
            self.norm = nn.BatchNorm2d(6) if batchnorm else nn.Identity()
            self.dropout = nn.Dropout(0.2)
            self.head = nn.Linear(6 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.convolution(x)))
        return self.head(self.dropout(x.flatten(1)))


class SmallMemory(nn.Module):
    """A model on a device that has room for ``most`` images.

    Attributes:
        sizes: of the batches that were tried.
    """

    def __init__(self, model: nn.Module, most: int):
        super().__init__()
        self.model, self.most = model, most
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        x = self.model(x)
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return x


class ActAfter:
    """A task that calls a function once, when so many steps are done."""

    def __init__(self, steps: int, act: Callable[[], object]):
        self.done, self._steps, self._act = 0, steps, act

    def advance(self, steps: int = 1, note: str = "") -> None:
        before, self.done = self.done, self.done + steps
        if before < self._steps <= self.done:
            self._act()


def training(model: nn.Module, settings: OptimizerSettings, seed: int = 100, **options: Any) -> Training:
    """A training of ``model`` on the small sets."""
    if batchnorm := options.pop("batchnorm", None):
        settings = FinetuneSettings(**settings.model_dump(), batchnorm=batchnorm, state="dense")
    return Training(model, TRAIN, VALIDATION, settings, MODEL, seed, **options)


def state_bits(model: nn.Module) -> dict[str, bytes]:
    """Every weight and buffer, to be compared to the last bit."""
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def without_seconds(history: History) -> dict[str, Any]:
    """A history, to be compared: all but how long it took."""
    return history.model_dump(exclude={"epochs": {"__all__": {"seconds"}}})
