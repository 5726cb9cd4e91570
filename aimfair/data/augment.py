"""Data augmentation: random parameters of a batch are drawn first, then applied on the CPU or on a device.

Images are augmented at the size at which they are stored, which is the size that the model sees. A crop is therefore
only ever enlarged, and bilinear interpolation needs no low-pass filter: antialiasing changes nothing.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from aimfair.data.images import Pixels
from aimfair.data.settings import AugmentSettings

_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Changes:
    """Augmentation of each of B images of H x W pixels, applied in this order; None: not applied.

    Attributes:
        boxes: int64 [B, 4], top, left, height and width of the crop that is resized to H x W.
        moves: int64 [2, B], shift up and to the left in pixels; edge pixels are repeated.
        mirrored: bool [B], flipped left to right.
    """

    boxes: npt.NDArray[np.int64] | None = None
    moves: npt.NDArray[np.int64] | None = None
    mirrored: npt.NDArray[np.bool_] | None = None

    def part(self, images: slice) -> "Changes":
        """The changes of some of the images."""
        return Changes(
            None if self.boxes is None else self.boxes[images],
            None if self.moves is None else self.moves[:, images],
            None if self.mirrored is None else self.mirrored[images],
        )


def draw(settings: AugmentSettings, count: int, height: int, width: int, generator: np.random.Generator) -> Changes:
    """Independent random changes of ``count`` images, a function of ``generator``."""
    boxes = moves = mirrored = None
    if settings.crop_scale != (1.0, 1.0):
        boxes = _draw_boxes(count, height, width, settings.crop_scale, settings.crop_ratio, generator)
    if settings.shift:
        moves = generator.integers(-settings.shift, settings.shift, size=(2, count), endpoint=True)
    if settings.flip:
        mirrored = generator.random(count) < 0.5
    return Changes(boxes, moves, mirrored)


def _draw_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """int64 [count, 4]: a random box in each image.

    Its share of the area is uniform in ``scale``, its aspect ratio log-uniform in ``ratio`` (Szegedy et al., 2015,
    arXiv 1409.4842), its sides are rounded to pixels. The first of ten draws that fits into the image is taken, or the
    whole image if none fits. The ratio is that of the stored pixels, which differs from the original's if ``data.fit``
    is stretch, as in AIM-Fair.
    """
    shape = (count, _CROP_ATTEMPTS)
    area = generator.uniform(scale[0], scale[1], size=shape) * height * width
    aspect = np.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1]), size=shape))
    sides = np.rint([np.sqrt(area / aspect), np.sqrt(area * aspect)]).astype(np.int64)  # [2, count, attempts]
    image = np.array([[height], [width]])
    fits = np.all((sides >= 1) & (sides <= image[:, None]), axis=0)
    chosen = np.where(fits.any(axis=1), sides[:, np.arange(count), fits.argmax(axis=1)], image)  # [2, count]
    corners = generator.integers(0, image - chosen, endpoint=True)
    return np.concatenate([corners, chosen]).T


def change_pixels(images: Pixels, indices: npt.NDArray[np.int64], changes: Changes, out: npt.NDArray[np.uint8]) -> None:
    """Writes the images at ``indices``, changed, on the CPU.

    Args:
        images: uint8 [N, H, W, 3], usually a memory map.
        indices: int64 [B].
        changes: of those B images. Crops are resized in fixed-point arithmetic and rounded, as Pillow does.
        out: uint8 [B, H, W, 3], contiguous, written to.
    """
    for place, index in enumerate(indices):
        if changes.boxes is None:
            out[place] = images[index]
        else:
            _enlarge(images[index], changes.boxes[place], out[place])
    if changes.moves is not None:
        reach = int(np.abs(changes.moves).max(initial=0))
        padded = np.pad(out, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        for place, (down, across) in enumerate(changes.moves.T + reach):
            out[place] = padded[place, down : down + out.shape[1], across : across + out.shape[2]]
    if changes.mirrored is not None:
        for which in np.flatnonzero(changes.mirrored):
            pixels = torch.from_numpy(out[which])
            pixels.copy_(pixels.flip(1))  # faster than NumPy by an order of magnitude


def _enlarge(image: npt.NDArray[np.uint8], box: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
    """Resizes the part ``box`` of ``image`` [H, W, 3] into ``out`` [H, W, 3]."""
    top, left, height, width = box
    part = torch.from_numpy(image[top : top + height, left : left + width].copy())[None]
    # A permuted view has channels-last strides, for which PyTorch has a vectorized kernel.
    large = functional.interpolate(part.permute(0, 3, 1, 2), size=out.shape[:2], mode="bilinear", align_corners=False)
    out[...] = large.permute(0, 2, 3, 1)[0].numpy()


def change_on_device(stored: Tensor, changes: Changes) -> Tensor:
    """The same changes as one batched operation on the device of the images.

    Args:
        stored: uint8 [B, H, W, 3], not changed.

    Returns:
        [B, H, W, 3], values 0 to 255: uint8, equal to those of :func:`change_pixels`, or float32 with crops, which
        differ from those by at most 1.1 because they are not rounded.
    """
    if changes.boxes is None and changes.moves is None and changes.mirrored is None:
        return stored
    batch, height, width, _ = stored.shape
    zero, one = np.zeros(batch), np.ones(batch)
    top, left, *sides = changes.boxes.T if changes.boxes is not None else (zero, zero, height * one, width * one)
    down, across = changes.moves if changes.moves is not None else (zero, zero)
    rows = _sources(height, top, sides[0], down, None)
    columns = _sources(width, left, sides[1], across, changes.mirrored)
    if changes.boxes is None:
        places = torch.from_numpy(rows.astype(np.int64)[:, :, None] * width + columns.astype(np.int64)[:, None, :])
        chosen = places.view(batch, -1, 1).expand(-1, -1, 3).to(stored.device)
        return stored.flatten(1, 2).gather(1, chosen).view(stored.shape)
    # grid_sample's coordinates: the image spans -1 to 1, a pixel is sampled at its centre.
    x, y = (
        torch.from_numpy((2 * sources + 1) / length - 1).to(stored.device, torch.float32)
        for sources, length in ((columns, width), (rows, height))
    )
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    sampled = functional.grid_sample(
        stored.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.permute(0, 2, 3, 1)


def _sources(
    length: int,
    start: npt.NDArray[np.float64],
    side: npt.NDArray[np.float64],
    move: npt.NDArray[np.float64],
    mirrored: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.float64]:
    """float64 [B, length]: the source row (or column) in the stored image of each row of the result."""
    places = np.broadcast_to(np.arange(length), (len(start), length))
    if mirrored is not None:
        places = np.where(mirrored[:, None], places[:, ::-1], places)
    places = np.clip(places + move[:, None], 0, length - 1)
    sources = (places + 0.5) * (side / length)[:, None] - 0.5  # pixel centers in the box
    return start[:, None] + np.clip(sources, 0, side[:, None] - 1)
