import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data.biased_subset import biased_indices, group_sizes, largest_total

BIASES = st.floats(0.01, 1)


@st.composite
def majorities(draw: st.DrawFn) -> tuple[list[int], int]:
    values = draw(st.integers(2, 4))
    return draw(st.lists(st.integers(0, values - 1), min_size=1, max_size=5)), values


def test_the_sizes_of_the_paper() -> None:
    assert group_sizes([1, 0], 2, 1 / 9, 20_000).tolist() == [[1000, 9000], [9000, 1000]]


@given(majorities(), BIASES, st.integers(0, 50_000))
def test_sizes_sum_to_the_total_and_keep_the_ratio(majority: tuple[list[int], int], ratio: float, total: int) -> None:
    sizes = group_sizes(*majority, ratio, total)
    assert sizes.sum() == total
    of_majority = total / (len(sizes) * (1 + (majority[1] - 1) * ratio))
    for y, dominant in enumerate(majority[0]):
        exact = np.full(majority[1], of_majority * ratio)
        exact[dominant] = of_majority
        assert (np.abs(sizes[y] - exact) < 1).all()


@given(majorities(), BIASES, st.data())
def test_the_largest_total_fits_and_not_much_more_does(
    majority: tuple[list[int], int], ratio: float, data: st.DataObject
) -> None:
    shape = (len(majority[0]), majority[1])
    numbers = st.lists(st.integers(0, 3000), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    available = np.array(data.draw(numbers)).reshape(shape)
    total = largest_total(majority[0], available, ratio)
    assert (group_sizes(*majority, ratio, total) <= available).all()
    shares = group_sizes(*majority, ratio, 10**9) / 10**9
    more = total + 1 + int(np.ceil(1 / shares.min()))  # one more image of the smallest group, at least
    assert (group_sizes(*majority, ratio, more) > available).any()


def labels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, 400), rng.integers(0, 3, 400)


def test_a_drawn_subset_has_the_sizes_and_follows_the_seed() -> None:
    target, protected = labels()
    first, again, other = (biased_indices(target, protected, [2, 0], 0.25, 90, seed) for seed in (1, 1, 2))
    counts = np.zeros((2, 3), dtype=np.int64)
    np.add.at(counts, (target[first], protected[first]), 1)
    assert counts.tolist() == [[8, 8, 30], [30, 7, 7]]
    assert first.tolist() == again.tolist() != other.tolist()
    assert first.tolist() == sorted(set(first.tolist()))


def test_without_a_seed_the_first_of_each_group_are_taken() -> None:
    target = np.array([0, 0, 0, 1, 1, 1, 0, 1])
    protected = np.array([1, 1, 0, 0, 1, 0, 1, 0])
    assert biased_indices(target, protected, [1, 0], 0.5, 6, None).tolist() == [0, 1, 2, 3, 4, 5]


def test_as_many_as_the_groups_allow() -> None:
    target, protected = np.repeat([0, 0, 1, 1], [50, 9, 100, 100]), np.repeat([0, 1, 0, 1], [50, 9, 100, 100])
    assert len(biased_indices(target, protected, [0, 1], 0.1, None, 0)) == 110


def test_a_group_with_too_few_images_is_named() -> None:
    target, protected = np.repeat([0, 0, 1, 1], 10), np.tile(np.repeat([0, 1], 10), 2)
    with pytest.raises(
        AimfairError,
        match=r"biased set of 40 with minority ratio 0.25: group \(y=0, a=1\) has 10 images and needs 16;"
        r" group \(y=1, a=0\) has 10 images and needs 16; 25 images are possible",
    ):
        biased_indices(target, protected, [1, 0], 0.25, 40, 0)
    with pytest.raises(AimfairError, match=r"\(y=1, a=1\) has 0 images and needs 1; a group without images makes it"):
        biased_indices(target[:30], protected[:30], [1, 0], 0.25, None, 0)


def test_a_majority_that_does_not_fit_is_refused() -> None:
    target, protected = labels()
    with pytest.raises(ConfigError, match=r"data.majority: found 1 values, expected one for each of 2"):
        biased_indices(target, protected, [0], 0.5, None, 0)
    with pytest.raises(ConfigError, match=r"data.majority: found 3 for target class 1, expected .* 0 to 2"):
        biased_indices(target, protected, [0, 3], 0.5, None, 0)
