"""People emoji: known labels, no person in two splits, the bias that was asked for, reproducible drawings."""

import numpy as np
import pytest

from aimfair.base.errors import ConfigError
from aimfair.data import emoji
from aimfair.data.emoji_drawing import degrade, draw
from aimfair.data.settings import DataSettings

ROLES = {"kind": "emoji", "target": "gender", "protected": "tone", "drawings": 1, "image_size": 24}


def settings(**changes) -> DataSettings:
    return DataSettings(**ROLES | changes)


@pytest.fixture(scope="module")
def splits():
    return emoji.load(settings(audit=["fitzpatrick", "scene"]))


def test_every_person_is_there_in_two_genders_and_five_tones():
    everyone = emoji.everyone()
    assert len(emoji.people()) == 77
    assert len({one.name for one in everyone}) == len(everyone) == 770
    assert [one.number for one in everyone] == list(range(770))


@pytest.mark.parametrize("style", ["noto", "fluent", "twemoji"])
def test_sheets_hold_different_emoji_with_skin_from_light_to_dark(style):
    pixels = emoji.pixels(style)
    assert pixels.shape == (770, emoji.SIZE, emoji.SIZE, 4)
    assert len({one.tobytes() for one in pixels}) == 770
    by_tone = pixels.reshape(154, 5, -1, 4).astype(float)
    differs = np.ptp(by_tone[..., :3], axis=1).max(-1) > 20
    opaque = by_tone[..., 3].min(1) > 200
    for tones, mask in zip(by_tone, differs & opaque, strict=True):
        second, third, fourth, fifth = tones[1:, mask, :3].mean((1, 2))
        assert second > third > fourth > fifth


def test_no_person_is_in_two_splits(splits):
    people = [set(part.clusters) for part in splits.parts.values()]
    assert sum(map(len, people)) == len(set().union(*people)) == 77
    assert emoji.split_people(settings(seed=1)) != emoji.split_people(settings())


def test_training_is_biased_and_the_test_set_is_balanced(splits):
    (light, dark), (men, dark_men) = splits.train.group_counts(2, 2)
    assert abs(dark - men) <= 1
    assert abs(light - dark / 9) < 1
    assert abs(dark_men - men / 9) < 1
    assert len(set(splits.test.group_counts(2, 2).flat)) == 1
    assert splits.protected_names == ("light", "dark")


def test_the_middle_tone_is_left_out_where_it_would_have_no_label(splits):
    assert not any(name.endswith("type 4") for name in splits.test.ids)
    everyone = emoji.load(settings(protected="scene", audit=["tone"])).test
    assert any(name.endswith("type 4") for name in everyone.ids)


def test_the_audit_changes_no_training_image(splits):
    plain = emoji.load(settings()).train
    assert plain.ids == splits.train.ids
    assert np.array_equal(plain.images, splits.train.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 8}, "data.image_size: found 8, expected 16 to 96"),
        ({"test_share": 0.001}, "data.test_share: found 0.001, which is none of"),
        ({"majority": [1, 2]}, "data.majority"),
    ],
)
def test_what_there_is_not_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        emoji.load(settings(**changes))


def test_an_unknown_attribute_is_refused():
    with pytest.raises(ValueError, match="expected one of gender, tone, fitzpatrick, scene for emoji"):
        settings(protected="ink")


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_a_drawing_depends_on_its_emoji_and_seed_alone():
    some = emoji.pixels("noto")[:300:30]
    together = draw(some, range(10), 32)
    assert np.array_equal(together[7:8], draw(some[7:8], [7], 32))
    assert len({one.tobytes() for one in draw(some[:1].repeat(20, 0), range(20), 32)}) == 20


def test_no_emoji_leaves_the_image():
    white = np.full((50, 48, 48, 4), 255, np.uint8)
    white[:, 8:40, 8:40, :3] = 0
    images = draw(white, range(50), 48)
    centre = (images.max(-1) < 20).sum((1, 2)) / 48**2
    assert centre.min() > 0.8 * (32 / 48 * 0.7) ** 2


def test_degradation_rises_with_its_strength():
    images = draw(emoji.pixels("noto")[:20], range(20), 32)
    assert np.array_equal(degrade(images, 0, range(20)), images)
    change = [np.abs(degrade(images, s, range(20)) - images.astype(float)).mean() for s in (0.1, 0.3, 0.6, 1.0)]
    assert change == sorted(change)
    assert change[0] > 2
    assert np.array_equal(degrade(images, 0.5, range(20))[4:5], degrade(images[4:5], 0.5, [4]))
