"""Random changes of training images, a whole batch at a time, on the device where it is."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aimfair.config import AugmentSettings

_CROP_ATTEMPTS = 10


def augment(x: Tensor, settings: AugmentSettings, generator: np.random.Generator) -> Tensor:
    """``x`` with random crops, then shifts and flips, each drawn for each image alone.

    Args:
        x: float [B, C, H, W], not changed.
        generator: all that is random follows from it, on every device.

    Returns:
        A tensor like ``x``; ``x`` itself if the settings ask for nothing.
    """
    if settings.crop_scale != (1.0, 1.0):
        x = _resized_crop(x, settings.crop_scale, settings.crop_ratio, generator)
    if settings.shift or settings.flip:
        x = _shift_and_flip(x, settings.shift, settings.flip, generator)
    return x


def _resized_crop(
    x: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> Tensor:
    """A random box of each image, enlarged to the whole by bilinear interpolation.

    Its share of the area is uniform in ``scale``, its width over its height log-uniform in ``ratio`` (Szegedy et al.,
    2015, arXiv 1409.4842), among draws that fit into the image; where none of ten does, the box is the whole image.
    """
    batch, _, height, width = x.shape
    area = generator.uniform(scale[0], scale[1], size=(batch, _CROP_ATTEMPTS))
    log_ratio = generator.uniform(math.log(ratio[0]), math.log(ratio[1]), size=(batch, _CROP_ATTEMPTS))
    aspect = np.exp(log_ratio) * height / width  # of shares of the image's width and height
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)])  # [x and y, B, attempts], shares of the image's
    fits = np.all(sides <= 1, axis=0)
    box = np.where(fits.any(axis=1), sides[:, np.arange(batch), fits.argmax(axis=1)], 1.0)  # [x and y, B]
    centres = generator.uniform(-1.0, 1.0, size=(2, batch)) * (1 - box)  # the image spans -1 to 1

    theta = np.zeros((batch, 2, 3))
    theta[:, [0, 1], [0, 1]] = box.T
    theta[:, :, 2] = centres.T
    grid = functional.affine_grid(torch.from_numpy(theta).to(x), list(x.shape), align_corners=False)
    # Samples may lie between the outermost pixels' centres and the rim: "zeros" would darken them.
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _shift_and_flip(x: Tensor, shift: int, flip: bool, generator: np.random.Generator) -> Tensor:
    """Each image moved by up to ``shift`` pixels along each axis, its outermost pixels repeated; half of them mirrored.

    Pixels only change places, so all of it is one gather.
    """
    batch, channels, height, width = x.shape
    moves = generator.integers(-shift, shift, size=(2, batch, 1), endpoint=True)
    rows = np.clip(np.arange(height) + moves[0], 0, height - 1)
    columns = np.clip(np.arange(width) + moves[1], 0, width - 1)
    if flip:
        columns = np.where(generator.random((batch, 1)) < 0.5, columns[:, ::-1], columns)
    places = torch.from_numpy(rows[:, None, :, None] * width + columns[:, None, None, :]).to(x.device)
    return x.flatten(2).gather(2, places.flatten(2).expand(-1, channels, -1)).view(x.shape)
