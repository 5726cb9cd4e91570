"""From stored images to what a model takes."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.config import ModelSettings


class Normalize:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] on a device: ``(value / 255 - mean) / std`` per channel.

    The result keeps the stored order of values, channels last in memory, which convolutions on the CPU prefer; weights
    may stay contiguous.
    """

    def __init__(self, settings: ModelSettings, device: torch.device):
        mean = torch.tensor(settings.mean, dtype=torch.float64)
        std = torch.tensor(settings.std, dtype=torch.float64)
        self.device = device
        self._scale = (1 / (255 * std)).to(device, torch.float32).view(3, 1, 1)
        self._shift = (-mean / std).to(device, torch.float32).view(3, 1, 1)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        owned = np.require(images, requirements=["C", "W"])  # torch has no read-only tensors: a memory map is copied
        stored = torch.from_numpy(owned).to(self.device)
        return torch.addcmul(self._shift, stored.permute(0, 3, 1, 2).float(), self._scale)
