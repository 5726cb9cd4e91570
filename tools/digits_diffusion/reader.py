"""An independent reader of images: which digit, in which ink. It has never seen the generator's part."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.svm import SVC
from torch.nn import functional as F

from aimfair.base.seeds import generator
from aimfair.data.digits import INKS, handwritten, random_style, render

Images = npt.NDArray[np.uint8]


def fit_reader(rounds: int = 4, seed: int = 0) -> Any:
    """A support vector machine trained on the real digits of the other three parts, each in ``rounds`` styles."""
    parts = [handwritten(part) for part in ("train", "validation", "test")]
    digits, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    rng = generator(seed, "reader")
    drawn = [
        render(digits, [random_style(str(rng.choice(list(INKS))), rng) for _ in labels], rng) for _ in range(rounds)
    ]
    return SVC(C=10).fit(features(np.concatenate(drawn)), np.tile(labels, rounds))


def features(images: Images) -> npt.NDArray[np.float32]:
    """[N, 392]: histograms of oriented gradients of the distance from the paper's colour (8 directions, 7x7 cells)."""
    pixels = images.astype(np.float32)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    paper = np.median(border, axis=1)[:, None, None]
    distance = torch.from_numpy(np.linalg.norm(pixels - paper, axis=-1))[:, None]
    sobel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    gradient = F.conv2d(F.avg_pool2d(distance, 3, 1, 1), torch.stack([sobel, sobel.T])[:, None], padding=1)
    angle = torch.atan2(gradient[:, 0], gradient[:, 1])
    directions = torch.arange(8) * torch.pi / 4
    towards = torch.relu(torch.cos(angle[:, None] - directions[:, None, None])).square()
    histograms = F.avg_pool2d(gradient.norm(dim=1, keepdim=True) * towards, 8, 4, 2).flatten(1)
    return F.normalize(histograms).numpy()


def read_inks(images: Images) -> npt.NDArray[np.str_]:
    """[N] names: the ink nearest in hue to the most coloured tenth of the pixels."""
    pixels = images.reshape(len(images), -1, 3).astype(np.float32)
    difference = pixels[..., 0] - pixels[..., 1]  # red over green
    paper = np.median(difference, axis=1, keepdims=True)
    coloured = np.argsort(-np.abs(difference - paper), axis=1)[:, : pixels.shape[1] // 10]
    redness = np.take_along_axis(difference - paper, coloured, axis=1).mean(axis=1)
    return np.where(redness > 0, "red", "green")
