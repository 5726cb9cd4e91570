"""From stored images to what a model takes."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.training.model_settings import ModelSettings

_VALUES_AT_ONCE = 2**20
"""Between the two passes over them these stay in the processor's cache."""


class Normalize:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] on a device: ``(value / 255 - mean) / std`` per channel.

    The result keeps the stored order of values, channels last in memory, which convolutions on the CPU prefer; weights
    may stay contiguous.
    """

    def __init__(self, settings: ModelSettings, device: torch.device):
        mean = torch.tensor(settings.mean, dtype=torch.float64)
        std = torch.tensor(settings.std, dtype=torch.float64)
        self.device = device
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        if self.device.type == "cpu":
            out = empty_images(images.shape)
            self.into(out, images)
            return out.permute(0, 3, 1, 2)
        owned = np.require(images, requirements=["C", "W"])  # torch has no read-only tensors: a memory map is copied
        return self.on_device(torch.from_numpy(owned).to(self.device))

    def into(self, out: Tensor, images: npt.NDArray[np.uint8]) -> None:
        """The same on the processor, without memory of its own.

        Args:
            out: float32 [B, H, W, 3], contiguous, written to.
            images: uint8 [B, H, W, 3].
        """
        count, height, width, _ = images.shape
        stored = torch.from_numpy(np.require(images, requirements=["C", "W"])).view(count, height, 3 * width)
        result = out.view(stored.shape)
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)  # of a row
        step = max(1, _VALUES_AT_ONCE // (3 * height * width))
        for start in range(0, count, step):
            piece = result[start : start + step].copy_(stored[start : start + step])
            torch.addcmul(shift, piece, scale, out=piece)

    def on_device(self, stored: Tensor) -> Tensor:
        """The same of values 0 to 255 [B, H, W, 3], of any type, that are on the device already."""
        values = stored.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift.view(3, 1, 1), values, self._scale.view(3, 1, 1))


def empty_images(shape: tuple[int, ...]) -> Tensor:
    """float32 of ``shape`` on the CPU, in huge pages where the system has them.

    A batch of large images is tens of megabytes. Of an ordinary allocation of that size each small page has to be
    fetched from the system at its first use, which takes four times as long as to normalise what goes there.
    """
    return torch.from_numpy(np.empty(shape, np.float32))
