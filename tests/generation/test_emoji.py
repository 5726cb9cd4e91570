"""Synthetic emoji: the people of the training images in another style, as a set like any other."""

from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.data import emoji
from aimfair.generation.emoji import EmojiSampler, emoji_prompts
from aimfair.generation.manifest import Manifest
from aimfair.generation.settings import EmojiSettings, GenerateSettings
from aimfair.run.directory import Run
from aimfair.stages import generate
from tests.tiny_run import SETTINGS

DATA = {"kind": "emoji", "target": "gender", "protected": "tone", "image_size": 24, "drawings": 1, "majority": [1, 0]}


def config(**changes) -> Config:
    generate = {"emoji": {"style": "twemoji"}, "balanced_per_group": 6, "biased_total": 20} | changes
    return Config.model_validate(SETTINGS | {"data": DATA, "generate": generate})


def make(folder: Path, settings: Config, *, overwrite: bool = False) -> Manifest:
    with Run.open(folder, settings, overwrite=overwrite, quiet=True) as run:
        generate.run(run)
        return Manifest(run.synthetic)


def test_the_set_shows_the_groups_and_no_person_of_the_other_splits(tmp_path):
    settings = config()
    manifest = make(tmp_path / "run", settings)
    people, _, _ = emoji.split_people(settings.data)
    by_name = {one.name: one for one in emoji.everyone()}
    for record in manifest.records.values():
        one = by_name[record.text]
        assert one.person in people
        assert (one.gender, one.tone) == (("woman", "man")[record.y], ("light", "dark")[record.a])
    balanced = manifest.load("balanced", 24, "crop")
    assert balanced.group_counts(2, 2).tolist() == [[6, 6], [6, 6]]
    assert manifest.load("biased", 24, "crop").group_counts(2, 2).tolist() == [[1, 9], [9, 1]]


def test_the_same_settings_give_the_same_files_and_others_are_refused(tmp_path):
    first, again = (make(tmp_path / name, config()) for name in ("one", "two"))
    assert first.records == again.records
    with pytest.raises(AimfairError, match=r"emoji|degradation"):
        make(tmp_path / "one", config(emoji={"style": "twemoji", "degradation": 0.5}))
    degraded = make(tmp_path / "one", config(emoji={"style": "twemoji", "degradation": 0.5}), overwrite=True)
    assert degraded.records != first.records


def test_images_are_spread_evenly_over_people():
    prompts = emoji_prompts(config().data)
    groups = [(one.y, one.a) for one in prompts]
    assert len({groups.count(group) for group in set(groups)}) == 1


def test_the_sampler_degrades_what_it_draws():
    texts, seeds = [emoji.everyone()[0].name] * 2, [1, 2]
    plain, worse = (
        EmojiSampler(EmojiSettings(style="fluent", degradation=strength), 24).sample(texts, seeds).images
        for strength in (0, 0.5)
    )
    assert plain.shape == worse.shape == (2, 24, 24, 3)
    assert np.abs(plain - worse.astype(float)).mean() > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "/mine"}, "images are copied from generate.folder"),
        ({"filters": {"near_duplicates": 2}}, "images of generate.emoji are not filtered"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GenerateSettings.model_validate({"emoji": {}} | changes)


def test_only_emoji_have_synthetic_emoji():
    with pytest.raises(ValueError, match=r"needs data\.kind emoji, found 'digits'"):
        Config.model_validate(SETTINGS | {"data": {"kind": "digits", "majority": [1, 0]}, "generate": {"emoji": {}}})
