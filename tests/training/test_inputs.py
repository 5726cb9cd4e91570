import numpy as np
import pytest
import torch

from aimfair.training import feed
from aimfair.training.feed import Normalize
from aimfair.training.settings import ModelSettings

SETTINGS = ModelSettings(config={"model_type": "resnet"}, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def all_values() -> np.ndarray:
    """uint8 [5, 16, 48, 3] in which every channel has every value."""
    values = np.arange(5 * 16 * 48, dtype=np.int64).reshape(5, 16, 48, 1)
    return ((values + np.array([0, 100, 200])) % 256).astype(np.uint8)


def expected(images: np.ndarray) -> torch.Tensor:
    exact = (images / 255 - np.array(SETTINGS.mean)) / np.array(SETTINGS.std)
    return torch.from_numpy(exact.transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("at_once", [1, 5000, 2**20])
def test_every_value_of_every_channel(at_once: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(feed, "_VALUES_AT_ONCE", at_once)
    found = Normalize(SETTINGS, device)(all_values())
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), expected(all_values()), atol=2e-7, rtol=2e-7)


def test_all_ways_give_the_same_bits() -> None:
    images = all_values()
    normalize = Normalize(SETTINGS, torch.device("cpu"))
    whole = normalize(images)
    assert torch.equal(whole, torch.cat([normalize(image[None]) for image in images]))
    assert torch.equal(whole, normalize.on_device(torch.from_numpy(images)))
    assert torch.equal(whole, normalize.on_device(torch.from_numpy(images).float()))
    assert whole[0].unique().numel() == normalize(images[:, ::-1])[0].unique().numel()
    for channel in range(3):  # wherever a value stands, and whatever vector instruction it gets
        results = {
            (int(v), float(r)) for v, r in zip(images[..., channel].flat, whole[:, channel].flatten(), strict=True)
        }
        assert len(results) == 256


def test_images_that_may_not_be_written_to_and_none_at_all() -> None:
    images = all_values()
    images.setflags(write=False)
    normalize = Normalize(SETTINGS, torch.device("cpu"))
    torch.testing.assert_close(normalize(images[:, ::2]), expected(images[:, ::2]), atol=2e-7, rtol=2e-7)
    assert normalize(images[:0]).shape == (0, 3, 16, 48)
