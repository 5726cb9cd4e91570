"""Filters by a share of a group: decided by all its images, whatever is interrupted, lost or shared."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimfair.base.interrupt import Interrupted
from aimfair.base.ranks import ALONE, Ranks
from aimfair.data.settings import DataSettings
from aimfair.generation.filters.pixels import NearDuplicates
from aimfair.generation.job import Job
from aimfair.generation.manifest import ImageRecord, Manifest, seed_of_attempt
from aimfair.generation.plan import PlannedImage, make_plan
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings, PairSettings
from aimfair.prompts.grammar import write_prompts
from tests.base.together import in_threads
from tests.generation.crash_points import contents
from tests.generation.samples import SIZE, NoiseSampler, prompt_settings, small_plan
from tests.generation.test_job import Stop

PLAN = small_plan(10)
PAIRS = make_plan(
    write_prompts(prompt_settings()),
    GenerateSettings(balanced_per_group=10, biased_total=12, pairs=PairSettings(held_out=2)),
    DataSettings(minority_ratio=0.5),
)
FILTERS = {
    "worst": {"quality": {"model": "unused:unused", "worst": 0.3}},
    "alike": {"near_duplicates_share": 0.2},
    "both": {"quality": {"model": "unused:unused", "worst": 0.2}, "near_duplicates_share": 0.2},
}


class Score:
    """Depends on pixels alone; ties are common."""

    def scores(self, images: np.ndarray, groups: Sequence[tuple[int, int]]) -> list[float]:
        return [score_of(image) for image in images]


def score_of(image: np.ndarray) -> float:
    return hashlib.sha256(image.tobytes()).digest()[0] % 16 / 4


def often_alike(seed: int, pixels: np.ndarray) -> np.ndarray:
    """A third of the images are one of two pictures with a little noise, a few are black."""
    if seed % 13 == 0:
        return pixels * 0
    if seed % 3:
        return pixels
    column, row = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    picture = 14 * (column if seed % 2 else (5 * row + column) % SIZE)
    return (picture[:, :, None] + pixels // 16).astype(np.uint8)


def make(
    folder: Path,
    filters: dict[str, Any],
    *,
    after: int | None = None,
    ranks: Ranks = ALONE,
    plan: Sequence[PlannedImage] = PLAN,
) -> Job:
    """``after``: stops after so many batches."""
    settings = GenerateSettings.model_validate(
        {"batch_size": 8, "max_rejections": 3, "image_format": "png", "filters": filters}
    )
    job = Job(folder, plan, Provenance({}), settings, SIZE, ranks=ranks)
    scores = [Score()] if "quality" in filters else []
    if after is None:
        job.run(lambda: NoiseSampler(change=often_alike), lambda: scores)
    else:
        with pytest.raises(Interrupted):
            job.run(lambda: NoiseSampler(change=often_alike), lambda: scores, interrupt=Stop(after))
    return job


def of_group(records: dict[int, ImageRecord]) -> list[list[ImageRecord]]:
    groups = defaultdict(list)
    for record in records.values():
        groups[record.group].append(record)
    return list(groups.values())


def first_values(records: Sequence[ImageRecord], field: str) -> list[Any]:
    """Of the images of round 0 that were measured."""
    found = [getattr((record.measured or [record])[0] if record.attempt else record, field) for record in records]
    return [value for value in found if value is not None]


def test_the_worst_of_each_group_are_replaced_by_better_ones(tmp_path: Path) -> None:
    make(tmp_path, {"quality": {**FILTERS["worst"]["quality"], "attempts": 2}})
    records = Manifest(tmp_path).records
    kept_low = 0
    assert "low_score" in {reason for record in records.values() for reason in record.rejected}
    for members in of_group(records):
        scores = first_values(members, "score")
        least = sorted(scores)[int(0.3 * len(scores))]
        for record in members:
            assert record.score is not None
            assert record.score >= least or record.rejected.count("low_score") == 2
            kept_low += record.score < least
            for reason, measured in zip(record.rejected, record.measured or [], strict=True):
                assert (measured.score is not None) == (reason == "low_score")
                assert measured.score is None or measured.score < least
    assert kept_low  # after two attempts: their prompts may always score low


def test_near_duplicates_up_to_a_share(tmp_path: Path) -> None:
    make(tmp_path, FILTERS["alike"])
    found = 0
    for members in of_group(Manifest(tmp_path).records):
        hashes = np.array([int(text, 16) for text in first_values(members, "hash")], dtype=np.uint64)
        rejected = sum(record.rejected[:1] == ["near_duplicate"] for record in members)
        of_bits = [int((~NearDuplicates(bits).add(hashes)).sum()) for bits in range(25)]
        most = next((bits for bits, count in enumerate(of_bits) if count > 0.2 * len(hashes)), 25) - 1
        assert rejected == (of_bits[most] if most >= 0 else 0)
        found += rejected
        kept = [int(record.hash or "0", 16) for record in members]
        closest = min((one ^ other).bit_count() for i, one in enumerate(kept) for other in kept[:i])
        assert most < closest
    assert found


@pytest.mark.parametrize(("attempts", "replaced"), [(2, 2), (None, 49)])
def test_a_prompt_that_always_gives_the_same_is_kept_in_the_end(
    tmp_path: Path, attempts: int | None, replaced: int
) -> None:
    one, other = [planned for planned in PLAN if planned.group == PLAN[0].group][:2]
    same = {seed_of_attempt(planned, attempt) for planned in (one, other) for attempt in range(50)}
    ramp = np.indices((SIZE, SIZE, 3))[1].astype(np.uint8)

    def change(seed: int, pixels: np.ndarray) -> np.ndarray:
        return 12 * ramp + pixels // 32 if seed in same else pixels

    filters = {"near_duplicates_share": 0.2, "near_duplicates_attempts": attempts}
    settings = GenerateSettings.model_validate({"batch_size": 8, "max_rejections": 3, "filters": filters})
    Job(tmp_path, PLAN, Provenance({}), settings, SIZE).run(lambda: NoiseSampler(change=change))
    assert Manifest(tmp_path).records[other.image].rejected == ["near_duplicate"] * replaced


@pytest.mark.parametrize(
    ("filters", "plan"),
    [(FILTERS["worst"], PLAN), (FILTERS["alike"], PLAN), (FILTERS["both"], PAIRS), ({"near_duplicates": 4}, PAIRS)],
    ids=["worst", "alike", "both, in pairs", "bits, in pairs"],
)
def test_neither_stops_nor_losses_nor_processes_change_a_decision(
    tmp_path: Path, filters: dict[str, Any], plan: list[PlannedImage]
) -> None:
    job = make(tmp_path / "whole", filters, plan=plan)
    expected = contents(tmp_path / "whole")
    rejected = dict(job.rejected)
    for after in (0, 4, 7):
        make(tmp_path / f"cut {after}", filters, after=after, plan=plan)
        again = make(tmp_path / f"cut {after}", filters, plan=plan)
        assert contents(tmp_path / f"cut {after}") == expected
        assert dict(again.rejected) == rejected
    folder = tmp_path / "cut 0"
    for record in list(Manifest(folder).records.values())[::5]:
        (folder / record.file).unlink()
    make(folder, filters, after=1, plan=plan)  # lines of an earlier call, some of whose images are missing
    make(folder, filters, plan=plan)
    assert contents(folder) == expected
    in_threads(lambda here: make(tmp_path / "shared", filters, ranks=here, plan=plan))
    assert contents(tmp_path / "shared") == expected


def test_without_shares_the_manifest_has_no_measurements(tmp_path: Path) -> None:
    make(tmp_path, {"near_duplicates": 4})
    text = (tmp_path / "manifest.jsonl").read_text()
    assert "near_duplicate" in text
    assert "measured" not in text
    assert "score" not in text
