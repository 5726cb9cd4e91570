"""Counterfactual pairs: the same seed and contexts, one protected value each; kept or replaced together."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.images import ImageSet, Splits
from aimfair.data.settings import DataSettings
from aimfair.generation.job import Job
from aimfair.generation.manifest import ImageRecord, Manifest, seed_of_attempt
from aimfair.generation.plan import HELD_OUT, PlannedImage, Sources, make_plan
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings, PairSettings
from aimfair.generation.source import read_source
from aimfair.prompts.grammar import Prompt, write_prompts
from aimfair.tuning.holdout import hold_out
from tests.generation.samples import SIZE, NoiseSampler, prompt_settings

PROMPTS = write_prompts(prompt_settings(protected=[["green"], ["red", "crimson"], ["blue"]]))
DATA = DataSettings(minority_ratio=0.5)


def settings_of(**changes: object) -> GenerateSettings:
    values = {"balanced_per_group": 8, "biased_total": 20, "batch_size": 8, "pairs": {"held_out": 3}, **changes}
    return GenerateSettings.model_validate(values)


def plan_of(prompts: list[Prompt] = PROMPTS, **changes: object) -> list[PlannedImage]:
    return make_plan(prompts, settings_of(**changes), DATA)


def pairs_of(plan: list[PlannedImage]) -> dict[int, list[PlannedImage]]:
    pairs: dict[int, list[PlannedImage]] = {}
    for planned in plan:
        if planned.pair is not None:
            pairs.setdefault(planned.pair, []).append(planned)
    return pairs


@pytest.mark.parametrize("disjoint", [True, False])
def test_images_of_a_pair_differ_in_the_protected_value_alone(disjoint: bool) -> None:
    plan = plan_of(disjoint=disjoint)
    pairs, of_prompt = pairs_of(plan), {prompt.id: prompt for prompt in PROMPTS}
    assert len(pairs) == 2 * (8 + 3)
    for images in pairs.values():
        assert [one.a for one in images] == [0, 1, 2]
        for name in ("y", "seed", "replica", "sets") if disjoint else ("y", "seed", "replica"):
            assert len({str(getattr(one, name)) for one in images}) == 1, name
        prompts = [of_prompt[one.prompt] for one in images]
        assert len({(prompt.target, str(prompt.contexts)) for prompt in prompts}) == 1
        assert len({one.text for one in images}) == 3
    assert len({images[0].seed for images in pairs.values()}) == len(pairs)
    assert [one.image for one in plan] == list(range(len(plan)))
    assert len({(one.prompt, one.replica) for one in plan}) == len(plan)


def test_held_out_pairs_are_in_no_other_set_and_the_sets_keep_their_sizes() -> None:
    plain, paired = plan_of(pairs=None), plan_of()
    for name in ("balanced", "biased"):
        assert Counter(one.group for one in paired if name in one.sets) == Counter(
            one.group for one in plain if name in one.sets
        )
    held = [one for one in paired if HELD_OUT in one.sets]
    assert all(one.sets == [HELD_OUT] and one.pair is not None for one in held)
    assert Counter(one.group for one in held) == {(y, a): 3 for y in (0, 1) for a in (0, 1, 2)}
    assert not {one.seed for one in held} & {one.seed for one in paired if HELD_OUT not in one.sets}
    assert all((one.pair is None) == (one.sets == ["biased"]) for one in paired)


def test_only_other_values_than_the_first_get_other_seeds() -> None:
    plain, paired = plan_of(pairs=None), plan_of(pairs={"held_out": 0})
    for before, after in zip(plain, paired, strict=True):
        assert (before.seed == after.seed) == (before.a == 0 or "balanced" not in before.sets)
    assert "pair" not in json.loads(plain[0].model_dump_json())  # the digest of old plans stays


def test_prompts_that_differ_in_more_are_refused() -> None:
    other = [one.model_copy(update={"contexts": {"tilt": "other"}}) if one.a == 2 else one for one in PROMPTS]
    with pytest.raises(AimfairError, match=r"generate\.pairs: found the prompts .* differ in the protected value"):
        plan_of(other)
    fewer = [one for one in PROMPTS if one != PROMPTS[-1]]
    with pytest.raises(AimfairError, match=r"found 5 prompts of group \(y=1, a=2\), expected 6"):
        plan_of(fewer)
    plan_of(other, pairs=None)


def test_imported_images_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"generate\.folder are not made in pairs"):
        GenerateSettings(folder=tmp_path, pairs=PairSettings())


def run(folder: Path, plan: list[PlannedImage], bad: set[tuple[str, int]], **changes: object) -> Job:
    """A job whose images of these texts and seeds are black."""

    class Sampler(NoiseSampler):
        def _one(self, text: str, seed: int) -> np.ndarray:
            return super()._one(text, seed) * ((text, seed) not in bad)

    job = Job(folder, plan, Provenance({}), settings_of(**changes), SIZE)
    job.run(Sampler)
    return job


def records_of(folder: Path) -> list[ImageRecord]:
    return list(Manifest(folder).records.values())


def test_a_rejected_image_is_replaced_with_its_pair(tmp_path: Path) -> None:
    plan = plan_of(biased_total=4)
    victim = pairs_of(plan)[3][1]
    lonely = next(one for one in plan if one.pair is None)
    bad = {(victim.text, victim.seed), (victim.text, seed_of_attempt(victim, 1)), (lonely.text, lonely.seed)}
    job = run(tmp_path, plan, bad)
    for record in records_of(tmp_path):
        attempts = 2 if record.pair == 3 else 1 if record.image == lonely.image else 0
        reason = "black" if record.image in (victim.image, lonely.image) else "partner"
        assert (record.attempt, record.rejected) == (attempts, [reason] * attempts)
    assert len({record.seed for record in records_of(tmp_path) if record.pair == 3}) == 1
    assert job.rejected == {"black": 3, "partner": 4}
    failed = {(group.y, group.a): group.failed for group in job.summary.groups if group.failed}
    assert failed == Counter([victim.group] * 2 + [lonely.group]), "rates tell which value fails, not its partners"
    assert not list((tmp_path / "images").glob("*.png"))
    assert len(list((tmp_path / "images").iterdir())) == len(plan)  # no file of a partner that was dropped


def test_partners_do_not_count_towards_the_limit(tmp_path: Path) -> None:
    plan = plan_of(biased_total=4)
    images = len(plan)
    bad = {(pairs_of(plan)[pair][1].text, pairs_of(plan)[pair][1].seed) for pair in range(3)}
    run(tmp_path, plan, bad, max_rejections=3.5 / images)  # 3 are black, 6 more are partners
    with pytest.raises(AimfairError, match="3 images rejected"):
        run(tmp_path / "strict", plan, bad, max_rejections=2.5 / images)


def test_a_killed_job_ends_with_the_same_pairs(tmp_path: Path) -> None:
    plan = plan_of(biased_total=4)
    bad = {(victim.text, victim.seed) for victim in (pairs_of(plan)[3][1], pairs_of(plan)[20][2])}
    run(tmp_path / "whole", plan, bad)
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*")}
    run(tmp_path / "damaged", plan, bad)
    for record in records_of(tmp_path / "damaged"):
        if record.pair == 3:
            (tmp_path / "damaged" / record.file).unlink()
    run(tmp_path / "damaged", plan, bad)
    assert whole == {
        path.relative_to(tmp_path / "damaged"): path.read_bytes() for path in (tmp_path / "damaged").rglob("*.*")
    }


def test_equal_images_are_no_pair(tmp_path: Path) -> None:
    """An attribute that changes nothing makes no counterfactual."""

    class Blind(NoiseSampler):
        def _one(self, text: str, seed: int) -> np.ndarray:
            return super()._one("", seed)

    job = Job(tmp_path, plan_of(), Provenance({}), settings_of(max_rejections=10), SIZE)
    with pytest.raises(AimfairError, match="duplicate"):
        job.run(Blind)


def test_tuning_does_not_tear_pairs_apart(tmp_path: Path) -> None:
    plan = plan_of()
    run(tmp_path, plan, set())
    records = records_of(tmp_path)
    parts = hold_out(records, 0.3)
    pairs: dict[int, set[bool]] = {}
    for record in records:
        if record.pair is not None and "balanced" in record.sets:
            pairs.setdefault(record.pair, set()).add(record.file in parts.judge)
    assert Counter(map(tuple, pairs.values())).keys() == {(True,), (False,)}


def test_other_runs_import_no_held_out_pair(tmp_path: Path) -> None:
    plan = plan_of()
    run(tmp_path, plan, set())
    found = read_source(tmp_path, (2, 3), DATA)
    held = {record.file for record in records_of(tmp_path) if HELD_OUT in record.sets}
    assert len(held) == 18
    assert len(found.images) == len(plan) - 18
    assert not held & {one.file for one in found.images}


# -- from real images --------------------------------------------------------------------------------------------------


def real_images(sizes: tuple[int, int] = (5, 4)) -> Splits:
    """So many of each class in training, and in validation."""
    generator = np.random.default_rng(3)

    def some(name: str) -> ImageSet:
        target = np.repeat([0, 1], sizes)
        pixels = generator.integers(0, 256, (len(target), SIZE, SIZE, 3), dtype=np.uint8)
        return ImageSet(
            pixels, target, np.zeros_like(target), tuple(f"{name}/{i // 2}.png" for i in range(len(target)))
        )

    return Splits(some("a"), some("b"), some("c"), ("one", "six"), ("green", "red", "blue"))


def test_each_pair_is_made_from_one_real_image_of_its_class() -> None:
    splits = real_images()
    sources = Sources.of(splits)
    plan = make_plan(PROMPTS, settings_of(pairs={"held_out": 3, "strength": 0.5}), DATA, sources)
    used: dict[str, set[int | None]] = {}
    for one in plan:
        assert one.source is not None
        split, number, name = one.source.split("/", 2)
        images = splits.parts[split]
        assert split == ("val" if HELD_OUT in one.sets else "train")
        assert images.target[int(number)] == one.y
        assert images.ids[int(number)] == name
        assert np.array_equal(Sources.pixels(splits, one.source), images.images[int(number)])
        used.setdefault(one.source, set()).add(one.pair)
    for images in pairs_of(plan).values():
        assert len({one.source for one in images}) == 1
    assert all(len(pairs) == 1 for source, pairs in used.items() if source.startswith("val"))
    counts = Counter(one.source for one in plan if one.a == 0 and one.y == 0 and "balanced" in one.sets)
    assert set(counts.values()) == {1, 2}  # 8 from 5
    other = make_plan(PROMPTS, settings_of(pairs={"held_out": 3, "strength": 0.5}, seed=1), DATA, sources)
    assert [one.source for one in other] != [one.source for one in plan]


def test_the_digest_of_sources_is_that_of_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, names = real_images(), ["val/3/b", "train/0/a", "train/8/a"]
    before = Sources.digest(splits, names)
    monkeypatch.setattr("aimfair.generation.plan._READ_AT_ONCE", 1)
    assert Sources.digest(splits, [*reversed(names), names[0]]) == before
    assert Sources.digest(splits, names[1:]) != before
    splits.train.images[1:8] = 0  # pixels of others
    assert Sources.digest(splits, names) == before
    splits.train.images[8, -1, -1, -1] ^= 1
    assert Sources.digest(splits, names) != before


def test_too_few_real_images_are_refused() -> None:
    edits = settings_of(pairs={"held_out": 5, "strength": 0.5})
    with pytest.raises(AimfairError, match=r"pairs\.held_out: found 5, expected at most 4"):
        make_plan(PROMPTS, edits, DATA, Sources.of(real_images()))
    with pytest.raises(AimfairError, match="class 1 has no training images"):
        make_plan(PROMPTS, edits, DATA, Sources.of(real_images((9, 0))))
