"""Draws emoji on coloured backgrounds, and degrades images as a stand-in for an imperfect generator."""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Pixels = npt.NDArray[np.uint8]

DRAWING = 1
"""Increase this when the drawn pixels change."""

SCALE = (0.7, 1.0)
"""Range of an emoji's side over the image's."""

ANGLE = 15.0
"""Greatest rotation either way, in degrees."""

SATURATION, BRIGHTNESS = (0.1, 0.5), (0.5, 1.0)
"""Ranges of the background, whose hue may be any."""

_CHUNK = 256  # images at a time, drawn at twice their size


def draw(emoji: Pixels, seeds: Sequence[int], size: int) -> Pixels:
    """One image of each emoji: moved, scaled, rotated and, every other one, mirrored, on one colour.

    Args:
        emoji: uint8 [N, H, H, 4], RGBA.
        seeds: N; an image depends on its emoji and its seed alone.
        size: S, pixels along each side.

    Returns:
        uint8 [N, S, S, 3], RGB.
    """
    images = np.empty((len(emoji), size, size, 3), dtype=np.uint8)
    for start in range(0, len(emoji), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(emoji[part], seeds[part], size)
    return images


def _draw(emoji: Pixels, seeds: Sequence[int], size: int) -> Pixels:
    affine, background = zip(*(_place(np.random.default_rng(seed)) for seed in seeds), strict=True)
    rgba = torch.from_numpy(emoji.astype(np.float32) / 255).permute(0, 3, 1, 2)
    alpha = rgba[:, 3:]
    premultiplied = torch.cat([rgba[:, :3] * alpha, alpha], dim=1)  # transparent pixels must not bleed
    grid = F.affine_grid(torch.tensor(affine), [len(emoji), 4, 2 * size, 2 * size], align_corners=False)
    placed = F.avg_pool2d(F.grid_sample(premultiplied, grid, align_corners=False), 2)
    paper = torch.tensor(background)[:, :, None, None]
    return _as_pixels(placed[:, :3] + paper * (1 - placed[:, 3:]))


def _place(rng: np.random.Generator) -> tuple[list[list[float]], tuple[float, float, float]]:
    """[2, 3] from image to emoji, in coordinates from -1 to 1; and the background's colour, each channel in [0, 1]."""
    scale = rng.uniform(*SCALE)
    angle = np.deg2rad(rng.uniform(-ANGLE, ANGLE))
    room = 1 - scale
    x, y = rng.uniform(-room, room, 2)
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    if rng.random() < 0.5:
        turned[0] *= -1
    moved = -turned @ (x, y)
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*SATURATION), rng.uniform(*BRIGHTNESS))
    return [[*map(float, row), float(shift)] for row, shift in zip(turned, moved, strict=True)], colour


# -- degradation -------------------------------------------------------------------------------------------------------

BLUR = 0.04
"""Standard deviation of the Gaussian at strength 1, over the image's side."""

NOISE = 0.1
"""Standard deviation of the noise at strength 1; white is 1."""

CAST, FADING = (0.15, 0.0, -0.15), 0.5
"""At strength 1: what is added to each channel, and the share of grey mixed in."""

REDUCTION = 4
"""At strength 1 an image has the detail of one with its side over this."""


def degrade(images: Pixels, strength: float, seeds: Sequence[int]) -> Pixels:
    """Images with less detail, a colour cast, faded colours, blur and noise, all the more the greater the strength.

    Args:
        images: uint8 [N, S, S, 3], RGB.
        strength: from 0, which changes nothing, to 1.
        seeds: N, of the noise.
    """
    if strength == 0:
        return images
    size = images.shape[1]
    found = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    small = max(round(size / (1 + (REDUCTION - 1) * strength)), 1)
    found = F.interpolate(F.interpolate(found, small, mode="area"), size, mode="bilinear", align_corners=False)
    found = _blurred(found, BLUR * strength * size)
    grey = found.mean(dim=1, keepdim=True)
    cast = torch.tensor(CAST)[:, None, None]
    found = found + (grey - found) * (FADING * strength) + cast * strength
    noise = np.stack([np.random.default_rng(seed).standard_normal((3, size, size), np.float32) for seed in seeds])
    return _as_pixels(found + torch.from_numpy(noise) * (NOISE * strength))


def _blurred(images: Tensor, sigma: float) -> Tensor:
    radius = max(round(3 * sigma), 1)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(images, [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def _as_pixels(images: Tensor) -> Pixels:
    pixels: Pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
