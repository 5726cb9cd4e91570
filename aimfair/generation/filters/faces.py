"""The filter of faces: exactly one, found by an ONNX detector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.generation.filter_settings import FaceCheck
from aimfair.generation.filters.onnx_file import ImageFile, fingerprint
from aimfair.generation.plan import Group
from aimfair.generation.reasons import NO_FACE, SEVERAL_FACES

_KEY = "generate.filters.faces"
_STRIDES = (8, 16, 32)  # of YuNet and SCRFD
_SIZE = (640, 640)  # (H, W) of a file that takes any

Floats = npt.NDArray[np.float32]


def facts(check: FaceCheck) -> dict[str, Any]:
    """What the decisions depend on.

    Raises:
        AimfairError: there is no such model.
    """
    if not check.model.is_file():
        raise AimfairError(f"{_KEY}.model: {check.model}: there is no such file, expected an ONNX model")
    return {"model": fingerprint(check.model), **check.model_dump(exclude={"model"})}


class Faces:
    """Rejects images without exactly one face.

    An image is scaled to the size that the detector takes, without distortion, its rest is black.

    Raises:
        AimfairError: the model cannot be used, or has none of the known layouts.
    """

    def __init__(self, check: FaceCheck):
        self._check, self._file = check, ImageFile(f"{_KEY}.model", check.model)
        self._size = self._file.size or _SIZE
        self._layout = _layout(check.model, self._file, self._size)

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """ "no_face", "several_faces" or None; see :class:`ImageFilter`."""
        counts = [len(self.find(image)) for image in images]
        return [None if count == 1 else SEVERAL_FACES if count else NO_FACE for count in counts]

    def find(self, image: npt.NDArray[np.uint8]) -> Floats:
        """The faces in uint8 [H, W, 3]: float32 [N, 4], left, top, right and bottom in pixels, the surest first."""
        pixels, scale = _fitted(image, self._size)
        scores, boxes = self._layout.decode(self._file.run(self._layout.prepare(pixels)), self._size)
        certain = scores >= self._check.score
        scores, boxes = scores[certain], boxes[certain] / scale
        order = np.argsort(-scores, kind="stable")
        boxes = _apart(boxes[order], self._check.overlap)
        return boxes[boxes[:, 3] - boxes[:, 1] >= self._check.smallest * len(image)]


class _Layout(Protocol):
    """How a family of detectors sees images and says what it finds."""

    name: str
    outputs: str  # in words

    def prepare(self, pixels: Tensor) -> Tensor:
        """float32 [3, H, W], red, green and blue from 0 to 255 -> what the file takes."""

    def decode(self, outputs: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> tuple[Floats, Floats]:
        """Scores [N] in [0, 1] and boxes [N, 4], left, top, right and bottom in pixels of (H, W).

        Raises:
            ValueError, IndexError: the outputs have other shapes.
        """


class _YuNet:
    """OpenCV's YuNet of 2023. Its outputs are sorted by name: bbox, cls, kps, obj, each for strides 8, 16 and 32."""

    name = "YuNet"
    outputs = "cls_8, cls_16, cls_32, obj_8, ..., bbox_8, ...: class, objectness [1, N, 1] and boxes [1, N, 4]"

    def __init__(self, names: Sequence[str]):
        self._names = list(names)

    def prepare(self, pixels: Tensor) -> Tensor:
        return pixels.flip(0)  # blue, green, red

    def decode(self, outputs: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> tuple[Floats, Floats]:
        named = dict(zip(self._names, outputs, strict=True))
        scores, boxes = [], []
        for stride in _STRIDES:
            classes, objects = (named[f"{kind}_{stride}"].reshape(-1) for kind in ("cls", "obj"))
            offsets = named[f"bbox_{stride}"].reshape(-1, 4)
            centres = (_grid(size, stride) + offsets[:, :2]) * stride
            half = np.exp(offsets[:, 2:]) * stride / 2
            scores.append(np.sqrt(classes.clip(0, 1) * objects.clip(0, 1)))
            boxes.append(np.concatenate([centres - half, centres + half], axis=1))
        return np.concatenate(scores), np.concatenate(boxes)


class _Scrfd:
    """InsightFace's SCRFD: for each stride scores, then distances from a point to the four sides, in strides."""

    name = "SCRFD"
    outputs = "6 or 9, for strides 8, 16 and 32: three scores [N, 1], three boxes [N, 4], then points [N, 10]"

    def prepare(self, pixels: Tensor) -> Tensor:
        return (pixels - 127.5) / 128

    def decode(self, outputs: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> tuple[Floats, Floats]:
        scores, boxes = [], []
        for stride, raw, sides in zip(_STRIDES, outputs[:3], outputs[3:6], strict=True):
            score, distances = raw.reshape(-1), sides.reshape(-1, 4) * stride
            points = _grid(size, stride) * stride
            points = np.repeat(points, len(score) // len(points), axis=0)  # one or two anchors at a point
            scores.append(score)
            boxes.append(np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1))
        return np.concatenate(scores), np.concatenate(boxes)


class _UltraFace:
    """Ultra-Light-Fast-Generic-Face-Detector: corners as shares of the image."""

    name = "UltraFace"
    outputs = "scores [1, N, 2], of background and face, and boxes [1, N, 4], corners from 0 to 1"

    def __init__(self, scores: int):
        self._scores = scores

    def prepare(self, pixels: Tensor) -> Tensor:
        return (pixels - 127) / 128

    def decode(self, outputs: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> tuple[Floats, Floats]:
        height, width = size
        scores, boxes = outputs[self._scores][0, :, 1], outputs[1 - self._scores][0]
        return scores, boxes * np.array([width, height, width, height], dtype=np.float32)


def _layout(path: Path, file: ImageFile, size: tuple[int, int]) -> _Layout:
    """That of a file, by the names and shapes of its outputs for a black image.

    Raises:
        AimfairError: it is none that is known.
    """
    shapes = [found.shape for found in file.run(torch.zeros(3, *size))]
    last = [shape[-1] if shape else 0 for shape in shapes]
    found: _Layout | None = None
    if {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in _STRIDES} <= {*file.outputs}:
        found = _YuNet(file.outputs)
    elif last in ([1] * 3 + [4] * 3, [1] * 3 + [4] * 3 + [10] * 3):
        found = _Scrfd()
    elif sorted(last) == [2, 4] and all(len(shape) == 3 for shape in shapes):
        found = _UltraFace(last.index(2))
    if found is not None:
        try:
            scores, boxes = found.decode(file.run(found.prepare(torch.zeros(3, *size))), size)
        except (ValueError, IndexError):
            found = None
        else:
            found = found if boxes.shape == (len(scores), 4) else None
    if found is None:
        outputs = "; ".join(f"{name} {list(shape)}" for name, shape in zip(file.outputs, shapes, strict=True))
        known = "; ".join(f"{one.name}: {one.outputs}" for one in (_YuNet, _Scrfd, _UltraFace))
        raise AimfairError(
            f"{_KEY}.model: {path}: for an image of {size[1]} x {size[0]} pixels it has the outputs {outputs}; expected"
            f" those of {known}; call any other detector in a function of your own, with generate.filters.hooks"
        )
    return found


def _fitted(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> tuple[Tensor, float]:
    """The image in the upper left corner of black float32 [3, H, W], from 0 to 255, and the scale."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    inner = max(round(image.shape[0] * scale), 1), max(round(image.shape[1] * scale), 1)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    pixels = torch.nn.functional.interpolate(pixels, inner, mode="bilinear", antialias=True, align_corners=False)
    return torch.nn.functional.pad(pixels[0], (0, size[1] - inner[1], 0, size[0] - inner[0])), scale


def _grid(size: tuple[int, int], stride: int) -> Floats:
    """[H / stride * W / stride, 2]: column and row of each point, row by row."""
    rows, columns = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)]
    return np.stack([columns.reshape(-1), rows.reshape(-1)], axis=1).astype(np.float32)


def _apart(boxes: Floats, overlap: float) -> Floats:
    """Those of the boxes, the surest first, that overlap with no surer one by more."""
    areas = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    kept: list[int] = []
    for row in range(len(boxes)):
        left, right = np.maximum(boxes[row, :2], boxes[kept, :2]), np.minimum(boxes[row, 2:], boxes[kept, 2:])
        common = (right - left).clip(0).prod(axis=1)
        if not (common > overlap * (areas[row] + areas[kept] - common)).any():
            kept.append(row)
    return boxes[kept]
