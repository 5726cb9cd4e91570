"""Coloured digits: real digits, disjoint parts, the bias that was asked for."""

from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from aimfair.base.errors import ConfigError
from aimfair.data import digits
from aimfair.data.digits import INKS, SIZE, STROKES, TILTS, Style, render
from aimfair.data.settings import DataSettings


@pytest.fixture(scope="module")
def splits():
    return digits.load(DataSettings())


def test_parts_are_all_the_digits_and_share_none():
    numbers = {part: set(digits.handwritten(part)[2]) for part in get_args(digits.Part)}
    assert set().union(*numbers.values()) == set(range(1797))
    for one, other in combinations(numbers, 2):
        assert not numbers[one] & numbers[other]


def test_parts_do_not_follow_the_seed():
    first, other = (digits.load(DataSettings(seed=seed)) for seed in (0, 1))
    for split in ("train", "validation", "test"):
        assert getattr(first, split).ids == getattr(other, split).ids
    assert not np.array_equal(first.train.protected, other.train.protected)


def test_training_and_validation_have_the_bias(splits):
    for images in (splits.train, splits.validation):
        (low_green, low_red), (high_green, high_red) = images.group_counts(2, 2)
        assert low_green == round((low_green + low_red) / 10)
        assert high_red == round((high_green + high_red) / 10)


def test_the_test_set_has_every_original_in_every_ink(splits):
    counts = splits.test.group_counts(2, 2)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert splits.test.ids[::2] == splits.test.ids[1::2]
    assert len(set(splits.test.ids)) == len(splits.test) // 2
    assert (splits.test.protected.reshape(-1, 2) == [0, 1]).all()


def test_labels_are_those_of_the_handwritten_digits(splits):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    numbers = [int(name.removeprefix("digit ")) for name in splits.train.ids]
    assert np.array_equal(splits.train.target, labels[numbers] >= 5)


def test_ten_classes():
    splits = digits.load(DataSettings(target="digit", majority=[1] * 5 + [0] * 5))
    assert splits.target_names == digits.DIGIT_NAMES
    counts = splits.train.group_counts(10, 2)
    assert (counts[:5, 0] < counts[:5, 1]).all()
    assert (counts[5:, 0] > counts[5:, 1]).all()


def test_a_subset_of_a_wanted_size_has_exact_groups():
    train = digits.load(DataSettings(train_images=200)).train
    assert train.group_counts(2, 2).tolist() == [[10, 90], [90, 10]]


def test_bias_of_one_is_balance():
    (low, high) = digits.load(DataSettings(minority_ratio=1.0)).train.group_counts(2, 2)
    assert abs(low[0] - low[1]) <= 1
    assert abs(high[0] - high[1]) <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 64}, "data.image_size: found 64, digits are drawn at 32"),
        ({"target": "digit"}, "expected one for each of 10 target classes"),
    ],
)
def test_what_there_is_not_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        digits.load(DataSettings(**settings))


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw(count: int, style: Style):
    images, _, _ = digits.handwritten("train")
    return render(images[:count], [style] * count, np.random.default_rng(0)).astype(float)


def test_images_are_deterministic_and_in_range():
    style = Style("red", "thin strokes", "upright", "grey")
    first, again = draw(4, style), draw(4, style)
    assert first.shape == (4, SIZE, SIZE, 3)
    assert np.array_equal(first, again)


def test_ink_changes_the_colour_and_not_the_shape():
    green, red = (draw(50, Style(ink, "medium strokes", "upright", "white")) for ink in INKS)
    ink = green.sum(-1) < 500
    assert (red.sum(-1)[ink] < 600).mean() > 0.95
    assert (red - green)[ink][:, 0].mean() > 80  # redder
    assert (red - green)[ink][:, 1].mean() < -40  # less green


def test_thicker_strokes_have_more_ink():
    shares = [(draw(50, Style("red", stroke, "upright", "white"))[..., 1] < 150).mean() for stroke in STROKES]
    assert shares[0] * 1.1 < shares[1]
    assert shares[1] * 1.1 < shares[2]


def test_tilt_leans_the_way_it_says():
    def lean(tilt: str) -> float:
        """Covariance of column and height of the inked pixels."""
        inked = draw(50, Style("red", "medium strokes", tilt, "white"))[..., 1] < 150
        _, row, column = np.nonzero(inked)
        return float(-np.cov(row, column)[0, 1])

    assert list(TILTS) == ["tilted right", "upright", "tilted left"]
    assert lean("tilted left") < lean("upright") - 5
    assert lean("tilted right") > lean("upright") + 5
