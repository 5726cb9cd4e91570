"""Images on their way to the model: a feed from the memory map against Pillow in the workers of torch's DataLoader.

Files as of CelebA, 178 x 218 pixels and about 10 KB of JPEG, become squares of 224 pixels. Both ways have them in the
page cache, and nothing is measured of the first epoch, in which ours decodes them: that is once for all runs.

The rival is the pipeline of torchvision's examples, written with Pillow and torch alone: RandomResizedCrop, flip,
ToTensor and Normalize in the worker processes, which go on from epoch to epoch.
"""

import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from aimfair.data.augment import change_on_device, draw
from aimfair.data.cache import decode_files
from aimfair.data.settings import AugmentSettings
from aimfair.training.batch_gradient import BatchGradient
from aimfair.training.feed import Feed, Normalize
from aimfair.training.models import build_model
from aimfair.training.settings import ModelSettings
from bench.harness import Case, Rival, Runner
from bench.targets import FEED, FEED_TO_STEPS, NO_FEED

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than processors
]

IMAGES = 1024
WIDTH, HEIGHT, SIZE = 178, 218, 224
BATCH = 128
WORKERS = (1, 2, 3)

CHANGES = {
    "crop + flip": AugmentSettings(crop_scale=(0.08, 1.0), flip=True),  # RandomResizedCrop's own
    "flip": AugmentSettings(flip=True),
    "unchanged": AugmentSettings(),  # as for validation and prediction
}

MODEL = ModelSettings(
    config={
        "model_type": "resnet",  # ResNet-18
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    }
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, shrink: float) -> list[Path]:
    """JPEG files of smooth images with the noise of a sensor."""
    folder = tmp_path_factory.mktemp("jpeg")
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:06}.jpg" for number in range(max(8, round(IMAGES * shrink)))]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 7, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 4, (HEIGHT, WIDTH, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


@pytest.fixture(scope="session")
def stored(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """uint8 [N, 224, 224, 3], the memory map of the files."""
    names = [path.name for path in files]
    cache = tmp_path_factory.mktemp("decoded")
    return decode_files(files[0].parent, names, SIZE, WIDTH * HEIGHT, fit="stretch", folder=cache).images


class Pillow(Dataset[Tensor]):
    """What torchvision does to an image, from opening its file on; float32 [3, 224, 224]."""

    def __init__(self, files: list[Path], changes: AugmentSettings):
        self._files = files
        self._changes = changes
        self._half = torch.full((3, 1, 1), 0.5)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._files[index]) as opened:
            image = opened.convert("RGB")
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=self._box(*image.size))
        if self._changes.flip and random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(self._half).div_(self._half)

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10 if self._changes.crop_scale != (1.0, 1.0) else 0):
            area = width * height * random.uniform(*self._changes.crop_scale)
            ratio = math.exp(random.uniform(*map(math.log, self._changes.crop_ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height


def loader(files: list[Path], changes: AugmentSettings, batch: int, workers: int, cuda: bool) -> DataLoader[Tensor]:
    return DataLoader(
        Pillow(files, changes),
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=cuda,
        multiprocessing_context="fork",
    )


def plan(images: int, batch: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """One epoch, as training makes it."""
    order = np.random.default_rng(seed).permutation(images)
    for start in range(0, images, batch):
        yield order[start : start + batch], np.random.default_rng([seed, start])


@pytest.mark.parametrize("changes", CHANGES)
def test_feed(
    changes: str,
    files: list[Path],
    stored: np.ndarray,
    device: torch.device,
    runner: Runner,
    benchmark: BenchmarkFixture,
) -> None:
    """Nobody uses the batches: the rate at which they can be had, on all processors."""
    normalize = Normalize(MODEL, device)
    loaders = {workers: loader(files, CHANGES[changes], BATCH, workers, device.type == "cuda") for workers in WORKERS}
    with Feed(stored, CHANGES[changes], normalize) as feed:

        def ours() -> None:
            for _ in feed.batches(plan(len(stored), BATCH)):
                pass

        def pillow(workers: int) -> None:
            for batch in loaders[workers]:
                batch.to(device, non_blocking=True)

        def check() -> None:
            indices, generator = next(plan(len(stored), BATCH))
            drawn = draw(CHANGES[changes], len(indices), SIZE, SIZE, generator)
            expected = change_on_device(torch.from_numpy(stored[indices]), drawn).permute(0, 3, 1, 2) / 127.5 - 1
            found = next(feed.batches(plan(len(stored), BATCH)))
            torch.testing.assert_close(found.cpu(), expected, atol=1.1 / 127.5, rtol=0)

        runner.run(
            Case(
                work=FEED,
                tensors=f"{WIDTH} x {HEIGHT} JPEG to {SIZE} x {SIZE}, {len(files)} images",
                state=changes,
                numel=stored.size,
                floor_bytes=0,
                ours=ours,
                check=check,
                rivals=[Rival(f"Pillow, {workers} workers", partial(pillow, workers)) for workers in WORKERS],
                capturable=False,
                items=len(files),
            ),
            benchmark,
        )


def test_resnet18_steps(
    files: list[Path],
    stored: np.ndarray,
    device: torch.device,
    shrink: float,
    runner: Runner,
    benchmark: BenchmarkFixture,
) -> None:
    """Training steps on the feed's batches, and on one batch that is there already: the difference is the waiting."""
    batch = max(2, round((128 if device.type == "cuda" else 16) * shrink))
    steps = 4
    files, stored = files[: steps * batch], stored[: steps * batch]
    changes = CHANGES["crop + flip"]
    normalize = Normalize(MODEL, device)
    model = build_model(MODEL, 2, 0).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    gradient = BatchGradient(model, batch)
    target = torch.arange(batch, device=device) % 2
    pillow = loader(files, changes, batch, 2, device.type == "cuda")

    def step(images: Tensor) -> None:
        gradient(images, target[: len(images)], 0)
        optimizer.step()

    with Feed(stored, changes, normalize) as feed:
        ready = next(feed.batches(plan(len(stored), batch))).clone()
        before = parameters(model)

        def ours() -> None:
            for images in feed.batches(plan(len(stored), batch)):
                step(images)

        def without() -> None:
            for _ in range(steps):
                step(ready)

        def with_pillow() -> None:
            for images in pillow:
                step(images.to(device, non_blocking=True))

        def check() -> None:
            assert not torch.equal(parameters(model), before)

        runner.run(
            Case(
                work=FEED_TO_STEPS,
                tensors=f"ResNet-18, {steps} x {batch} images of {SIZE} x {SIZE}",
                state="crop + flip",
                numel=stored.size,
                floor_bytes=0,
                ours=ours,
                check=check,
                rivals=[Rival(NO_FEED, without), Rival("Pillow, 2 workers", with_pillow)],
                capturable=False,
                items=len(files),
            ),
            benchmark,
        )


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).cpu()
