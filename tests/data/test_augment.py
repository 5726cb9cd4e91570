import numpy as np
import pytest
import torch
from PIL import Image

from aimfair.data.augment import Changes, change_on_device, change_pixels, draw
from aimfair.data.settings import AugmentSettings

ROUNDING = 1.1
"""The bound that :func:`change_on_device` states."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(n: int = 64, height: int = 9, width: int = 7) -> np.ndarray:
    return rng(7).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def change(images: np.ndarray, changes: Changes) -> np.ndarray:
    out = np.empty_like(images)
    change_pixels(images, np.arange(len(images)), changes, out)
    return out


def augmented(images: np.ndarray, settings: AugmentSettings, seed: int = 0) -> np.ndarray:
    return change(images, draw(settings, *images.shape[:3], rng(seed)))


def test_nothing_asked_for_gives_the_images_themselves() -> None:
    images = noise()
    assert draw(AugmentSettings(), 64, 9, 7, rng()) == Changes()
    np.testing.assert_array_equal(change(images, Changes()), images)
    stored = torch.from_numpy(images)
    assert change_on_device(stored, Changes()) is stored


def test_images_are_those_at_the_indices() -> None:
    images, indices = noise(), np.array([5, 0, 63, 5])
    out = np.empty((4, 9, 7, 3), np.uint8)
    change_pixels(images, indices, Changes(), out)
    np.testing.assert_array_equal(out, images[indices])
    with pytest.raises(IndexError):
        change_pixels(images, np.array([0, 0, 0, 64]), Changes(), out)


def test_shifts_and_flips_are_what_a_loop_finds() -> None:
    """Each image is one of the shifted, perhaps mirrored, images with repeated edges; all of them occur."""
    images = noise()
    found = augmented(images, AugmentSettings(shift=1, flip=True))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    moves = [(down, across, mirrored) for down in range(3) for across in range(3) for mirrored in (1, -1)]
    seen = set()
    for i in range(len(images)):
        for down, across, mirrored in moves:
            if np.array_equal(found[i], padded[i, down : down + 9, across : across + 7][:, ::mirrored]):
                seen.add((down, across, mirrored))
                break
        else:
            pytest.fail(f"image {i} is no shift of its original")
    assert len(seen) >= 16


def test_a_flip_alone_mirrors_about_half() -> None:
    images = noise(400)
    found = augmented(images, AugmentSettings(flip=True))
    mirrored = np.array([np.array_equal(b, a[:, ::-1]) for a, b in zip(images, found, strict=True)])
    same = np.array([np.array_equal(b, a) for a, b in zip(images, found, strict=True)])
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(("height", "width"), [(240, 240), (160, 320)])
def test_boxes_have_the_asked_area_and_aspect(height: int, width: int) -> None:
    settings = AugmentSettings(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0))
    boxes = draw(settings, 2000, height, width, rng()).boxes
    assert boxes is not None
    top, left, high, wide = boxes.T
    area, aspect = high * wide / (height * width), np.log2(wide / high)
    for start, side, length in ((top, high, height), (left, wide, width)):
        assert start.min() == 0
        assert (start + side).max() == length
    for values, low, upper in ((area, 0.25, 0.5), (aspect, -1.0, 1.0)):
        assert low - 0.02 < values.min() < low + 0.04
        assert upper - 0.04 < values.max() < upper + 0.02
    if height == width:  # all fit at once: the draws are the distributions themselves
        assert abs(area.mean() - 0.375) < 0.01
        assert abs(aspect.mean()) < 0.05
        assert abs(aspect.std() - 1 / np.sqrt(3)) < 0.03


def test_a_scale_that_no_aspect_fits_leaves_the_whole_image() -> None:
    images = noise(height=8, width=8)
    changes = draw(AugmentSettings(crop_scale=(0.999, 1.0), crop_ratio=(3.0, 4.0)), 64, 8, 8, rng())
    np.testing.assert_array_equal(change(images, changes), images)


def test_draws_that_do_not_fit_are_drawn_again() -> None:
    """Of draws three quarters are too wide for an image as high as wide; nearly none of ten in a row is."""
    changes = draw(AugmentSettings(crop_scale=(0.5, 0.5), crop_ratio=(1.0, 16.0)), 1000, 200, 200, rng())
    assert changes.boxes is not None
    assert (changes.boxes[:, 2] == 200).mean() < 0.1


@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 31)])
def test_crops_are_pillows_to_a_grey_level(height: int, width: int) -> None:
    """Pillow resamples by the same rule: bilinear, of pixels' centres, nothing outside the box."""
    images = noise(40, height, width)
    changes = draw(AugmentSettings(crop_scale=(0.01, 1.0)), 40, height, width, rng())
    assert changes.boxes is not None
    found = change(images, changes)
    for image, result, (top, left, high, wide) in zip(images, found, changes.boxes, strict=True):
        part = Image.fromarray(image[top : top + high, left : left + wide])
        expected = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
        assert np.abs(result.astype(int) - expected).max() <= 1


def test_a_box_of_one_pixel() -> None:
    images = noise(2)
    found = change(images, Changes(boxes=np.array([[8, 6, 1, 1], [0, 0, 1, 1]])))
    assert (found[0] == images[0, 8, 6]).all()
    assert (found[1] == images[1, 0, 0]).all()


ALL = AugmentSettings(shift=2, flip=True, crop_scale=(0.3, 1.0))


@pytest.mark.parametrize("settings", [AugmentSettings(shift=2, flip=True), AugmentSettings(crop_scale=(0.3, 1.0)), ALL])
def test_the_generator_alone_decides(settings: AugmentSettings) -> None:
    images = noise()
    before = images.copy()
    first, again, other = (augmented(images, settings, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(images, before)


def test_a_part_of_a_batch_changes_as_in_the_whole() -> None:
    images = noise()
    changes = draw(ALL, 64, 9, 7, rng())
    parts = [change(images[some], changes.part(some)) for some in (slice(0, 20), slice(20, 64))]
    np.testing.assert_array_equal(np.concatenate(parts), change(images, changes))


@pytest.mark.parametrize(
    "settings", [AugmentSettings(shift=3), AugmentSettings(flip=True), AugmentSettings(shift=1, flip=True)]
)
def test_moves_on_the_device_are_those_on_the_processor(settings: AugmentSettings, device: torch.device) -> None:
    images = noise()
    changes = draw(settings, 64, 9, 7, rng())
    found = change_on_device(torch.from_numpy(images).to(device), changes)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.cpu().numpy(), change(images, changes))


@pytest.mark.parametrize("settings", [AugmentSettings(crop_scale=(0.05, 1.0)), ALL])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 31)])
def test_crops_on_the_device_differ_by_rounding(
    settings: AugmentSettings, height: int, width: int, device: torch.device
) -> None:
    images = noise(100, height, width)
    changes = draw(settings, 100, height, width, rng())
    found = change_on_device(torch.from_numpy(images).to(device), changes).cpu().numpy()
    difference = np.abs(found - change(images, changes))
    assert difference.max() <= ROUNDING
    assert difference.mean() < 0.4
