"""transformers' way from a file to the model, beside ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from aimfair.data.decode import fit
from aimfair.data.images import ImageSet
from aimfair.data.settings import DataSettings
from aimfair.export import model_files
from aimfair.training.settings import ModelSettings

SIZE = 64


class FirstPixels(nn.Module):
    """Two logits that follow the pixels closely."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0].mean((1, 2)), x[:, 1:].mean((1, 2, 3))], dim=1) * 10


def noise(path: Path, number: int, width: int, height: int) -> Image.Image:
    """Soft noise: as photographs, without sharp rims at every pixel."""
    coarse = np.random.default_rng(number).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path)
    return image


def measured(root: Path, kind: str, sizes: list[tuple[int, int]], **changes: object) -> model_files.Difference:
    data = DataSettings(kind="table", root=root, image_size=SIZE, fit=kind)
    model = ModelSettings(config={"model_type": "resnet"}, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    originals = [noise(root / f"{n}.png", n, *size) for n, size in enumerate(sizes)]
    if kind == "stretch":
        pixels = [np.asarray(one.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for one in originals]
    else:
        pixels = [fit(one, SIZE) for one in originals]
    labels = np.zeros(len(sizes), dtype=np.int64)
    images = ImageSet(np.stack(pixels), labels, labels, tuple(f"{n}.png" for n in range(len(sizes))))
    model_files.write(root, data, model)
    if changes:
        path = root / model_files.PREPROCESSOR
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return model_files.measure(root, FirstPixels(), images, list(range(len(sizes))), data, model)


SIZES = [(178, 218), (200, 200), (31, 90), (97, 64)]


def test_stretched_images_are_the_same(tmp_path: Path) -> None:
    difference = measured(tmp_path, "stretch", SIZES)
    assert (difference.images, difference.classes) == (4, 0)
    assert difference.pixels < 1e-3
    assert difference.probability < 1e-5


def test_square_images_are_the_same_when_cut(tmp_path: Path) -> None:
    assert measured(tmp_path, "crop", [(200, 200), (SIZE, SIZE)]).pixels < 1e-3


def test_cut_images_differ_at_the_rim_alone(tmp_path: Path) -> None:
    """CelebA's 178 x 218; where the difference of the sides is odd, half a pixel more."""
    assert 0 < measured(tmp_path, "crop", [(178, 218)]).pixels <= 6
    assert measured(tmp_path, "crop", [(97, 64)]).pixels > 6


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}},  # resizes, then cuts
        {"resample": Image.Resampling.BILINEAR.value},
        {"image_mean": [0.5, 0.5, 0.5]},
    ],
)
def test_other_settings_are_seen_to_be_further_off(tmp_path: Path, changes: dict[str, object]) -> None:
    assert measured(tmp_path, "crop", [(178, 218)], **changes).pixels > 6


def test_examples_are_spread(tmp_path: Path) -> None:
    images = ImageSet(np.zeros((9, 8, 8, 3), np.uint8), *(np.zeros(9, np.int64),) * 2, tuple("abcdefghi"))
    assert model_files.examples(images, 5) == [0, 2, 4, 6, 8]
    assert model_files.examples(images, 1) == [0]
    assert model_files.examples(images, 64) == list(range(9))
