"""Two sets of images as one, without a copy of them."""

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.images import ImageSet, union


def images(count: int, size: int, seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    target, protected = random.integers(0, 2, (2, count))
    return ImageSet(pixels, target, protected, tuple(f"{seed}/{number}" for number in range(count)))


def test_the_second_follows_the_first():
    first, second = images(300, 8, 1), images(20, 8, 2)
    both = union(first, second)
    for name in ("target", "protected"):
        expected = np.concatenate([getattr(first, name), getattr(second, name)])
        assert np.array_equal(getattr(both, name), expected), name
    assert both.ids == first.ids + second.ids
    assert np.array_equal(both.subset([299, 300]).images, np.stack([first.images[-1], second.images[0]]))


@pytest.mark.parametrize(
    "index",
    [0, 4, 5, 11, -1, -12, np.int64(5), slice(None), slice(3, 8), slice(None, None, -3), np.array([11, 0, 5, 5])],
    ids=str,
)
def test_pixels_are_those_of_one_array(index):
    first, second = images(5, 8, 1), images(7, 8, 2)
    joined, whole = union(first, second).images, np.concatenate([first.images, second.images])
    assert (len(joined), joined.shape, joined.dtype) == (len(whole), whole.shape, whole.dtype)
    assert joined[index].dtype == np.uint8
    assert np.array_equal(joined[index], whole[index])


def test_places_past_the_end_are_refused():
    joined = union(images(5, 8, 1), images(7, 8, 2)).images
    for index in (12, -13, np.array([12])):
        with pytest.raises(IndexError):
            joined[index]


def test_nothing_is_read_before_it_is_asked_for():
    class Watched:
        dtype, shape, read = np.dtype(np.uint8), (5, 8, 8, 3), 0

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.read += 1
            return np.zeros((len(index), *self.shape[1:]), np.uint8)

    watched, second = Watched(), images(7, 8, 2)
    whole = images(5, 8, 1)
    joined = union(ImageSet(watched, whole.target, whole.protected, whole.ids), second)
    assert not watched.read
    assert joined.images[np.array([0, 11, 3])].any()
    assert watched.read == 1


def test_other_sizes_are_refused():
    with pytest.raises(AimfairError, match=r"\(8, 8, 3\) and \(9, 9, 3\) cannot be one set"):
        union(images(3, 8, 1), images(3, 9, 2))
