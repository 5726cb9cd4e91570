import numpy as np
import pytest
import torch

from aimfair.config import AugmentSettings
from aimfair.data.augment import augment


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def batch(n: int = 64, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.rand(n, 3, height, width)


def test_nothing_asked_for_gives_the_batch_itself() -> None:
    x = batch()
    assert augment(x, AugmentSettings(), rng()) is x


def test_shifts_and_flips_are_what_a_loop_finds() -> None:
    """Each image is one of the shifted, perhaps mirrored, images with repeated edges; all of them occur."""
    x = batch()
    y = augment(x, AugmentSettings(shift=1, flip=True), rng())
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    moves = [(down, across, mirrored) for down in range(3) for across in range(3) for mirrored in (False, True)]
    seen = set()
    for i in range(len(x)):
        for down, across, mirrored in moves:
            candidate = padded[i, :, down : down + 9, across : across + 7]
            if torch.equal(y[i], candidate.flip(2) if mirrored else candidate):
                seen.add((down, across, mirrored))
                break
        else:
            pytest.fail(f"image {i} is no shift of its original")
    assert len(seen) >= 16


def test_a_flip_alone_mirrors_about_half() -> None:
    x = batch(400)
    y = augment(x, AugmentSettings(flip=True), rng())
    mirrored = torch.tensor([torch.equal(b, a.flip(2)) for a, b in zip(x, y, strict=True)])
    same = torch.tensor([torch.equal(b, a) for a, b in zip(x, y, strict=True)])
    assert bool((mirrored ^ same).all())
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("shape", [(24, 24), (16, 32)])
def test_crops_have_the_asked_area_and_aspect(shape: tuple[int, int]) -> None:
    """Seen on ramps from 0 to 1: the spread of a ramp in the crop is the side of its box."""
    height, width = shape
    ramps = torch.stack(
        [
            ((torch.arange(width) + 0.5) / width).expand(height, width),
            ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width),
        ]
    ).expand(500, 2, height, width)
    y = augment(ramps, AugmentSettings(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0)), rng())
    # Centre columns and rows: the rim is flat where the box touches that of the image.
    sides = [
        (y[:, channel].diff(dim=dim)[:, height // 2 - 1, width // 2 - 1] * length)
        for channel, dim, length in ((0, 2, width), (1, 1, height))
    ]
    area = sides[0] * sides[1]
    aspect = sides[0] * width / (sides[1] * height)
    assert 0.249 < float(area.min()) < 0.26
    assert 0.49 < float(area.max()) < 0.501
    assert 0.499 < float(aspect.min()) < 0.6
    assert 1.6 < float(aspect.max()) < 2.001
    assert float(y.min()) >= float(ramps.min())
    centre = y.mean(dim=(2, 3))
    assert float(centre.min()) < 0.4
    assert float(centre.max()) > 0.6


def test_crops_keep_the_middle_bright() -> None:
    """No value is mixed with a border of zeros."""
    y = augment(torch.ones(100, 3, 8, 8), AugmentSettings(crop_scale=(0.08, 1.0)), rng())
    torch.testing.assert_close(y, torch.ones_like(y))


def test_a_scale_that_no_aspect_fits_leaves_the_whole_image() -> None:
    x = batch(height=8, width=8)
    y = augment(x, AugmentSettings(crop_scale=(0.999, 1.0), crop_ratio=(3.0, 4.0)), rng())
    torch.testing.assert_close(y, x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [AugmentSettings(shift=2, flip=True), AugmentSettings(crop_scale=(0.3, 1.0))])
def test_the_generator_alone_decides(settings: AugmentSettings) -> None:
    x = batch()
    before = x.clone()
    first, again, other = (augment(x, settings, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)


def test_on_the_device_as_on_the_cpu(device: torch.device) -> None:
    x = batch()
    settings = AugmentSettings(shift=1, flip=True, crop_scale=(0.5, 1.0))
    torch.testing.assert_close(augment(x.to(device), settings, rng()).cpu(), augment(x, settings, rng()))
