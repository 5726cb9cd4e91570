"""Which images an epoch sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfair.base.seeds import generator
from aimfair.data.images import ImageSet
from aimfair.training.samplers import EqualGroups, EveryImage, Repeated, groups_of
from tests.training.samples import images

GROUPS = np.array([0] * 40 + [1] * 7 + [2] * 2 + [3] * 12)


def samplers():
    return [EveryImage(50), EqualGroups(GROUPS), Repeated(np.array([1, 3, 0, 2, 5]))]


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
def test_the_order_depends_on_seed_and_epoch_alone(sampler):
    first = sampler.order(1, 1)
    assert first.dtype == np.int64
    assert len(first) == sampler.images
    assert np.array_equal(first, sampler.order(1, 1))
    assert not np.array_equal(first, sampler.order(1, 2))
    assert not np.array_equal(first, sampler.order(2, 1))


def test_every_image_comes_once_in_the_order_that_trainings_have_always_had():
    order = EveryImage(50).order(7, 3)
    assert sorted(order.tolist()) == list(range(50))
    assert np.array_equal(order, generator(7, "order", 3).permutation(50))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 9))
def test_groups_come_equally_often(sizes, epoch):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    sampler = EqualGroups(groups)
    order = sampler.order(5, epoch)
    assert len(set(np.bincount(groups[order], minlength=len(sizes)))) == 1
    assert sampler.images == len(order)
    assert len(groups) - len(sizes) < len(order) <= max(len(groups), len(sizes))
    times = np.bincount(order, minlength=len(groups))
    for group in range(len(sizes)):
        of_group = times[groups == group]
        assert of_group.max() - of_group.min() <= 1


def test_all_images_of_a_large_group_have_their_turn():
    sampler = EqualGroups(GROUPS)
    seen = np.concatenate([sampler.order(5, epoch) for epoch in range(1, 16)])
    assert set(seen.tolist()) == set(range(len(GROUPS)))
    assert len(set(sampler.order(5, 1).tolist())) < len(GROUPS)


def test_repeated():
    times = np.array([1, 3, 0, 2, 5])
    assert np.array_equal(np.bincount(Repeated(times).order(1, 1)), times)


def test_groups_are_numbered_by_target_and_protected_value_without_gaps():
    whole = images(6)
    target, protected = np.array([2, 0, 0, 2, 0, 1]), np.array([1, 3, 0, 1, 0, 3])
    numbered = groups_of(ImageSet(whole.images, target, protected, whole.ids))
    assert numbered.tolist() == [3, 1, 0, 3, 0, 2]
    assert numbered.dtype == np.int64
