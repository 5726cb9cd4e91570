"""Two sets of images as one, without holding them in memory."""

import numpy as np
import pytest

from aimfair.data.images import ImageSet
from aimfair.data.union import union
from aimfair.errors import AimfairError


def images(count: int, size: int, seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    target, protected = random.integers(0, 2, (2, count))
    return ImageSet(pixels, target, protected, tuple(f"{seed}/{number}" for number in range(count)))


def test_the_second_follows_the_first(tmp_path):
    first, second = images(300, 8, 1), images(20, 8, 2)
    both = union(first, second, tmp_path / "new")
    assert isinstance(both.images, np.memmap)
    assert not list((tmp_path / "new").iterdir()), "the file has no name"
    for name in ("images", "target", "protected"):
        expected = np.concatenate([getattr(first, name), getattr(second, name)])
        assert np.array_equal(getattr(both, name), expected), name
    assert both.ids == first.ids + second.ids
    assert np.array_equal(both.subset([299, 300]).images, np.stack([first.images[-1], second.images[0]]))


def test_views_with_strides_are_copied_as_they_look(tmp_path):
    first = images(10, 8, 1)
    flipped = ImageSet(first.images[:, :, ::-1], first.target, first.protected, first.ids)
    assert np.array_equal(union(flipped, first, tmp_path).images[:10], first.images[:, :, ::-1])


def test_other_sizes_are_refused(tmp_path):
    with pytest.raises(AimfairError, match=r"\(8, 8, 3\) and \(9, 9, 3\) cannot be one set"):
        union(images(3, 8, 1), images(3, 9, 2), tmp_path)
