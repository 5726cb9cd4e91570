"""How long a job will take, and what halves that."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.log import Log
from aimfair.diffusion.sampler import Samples
from aimfair.generation import estimate
from aimfair.generation.estimate import Estimator, halving
from aimfair.generation.settings import GenerateSettings, PairSettings
from tests.generation.samples import NoiseSampler
from tests.generation.test_job import PLAN, job_in

SETTINGS = GenerateSettings(steps=20)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(estimate.time, "monotonic", lambda: now[0])
    return now


def test_the_first_batch_is_not_measured(clock: list[float]) -> None:
    estimator = Estimator(SETTINGS, processes=2)
    made = []
    for batch in range(1, 8):
        made.append(estimator.note(8 * batch, 1000, {"denoiser": 1.0}, stalled=0.0, small_decoders=True))
        clock[0] += 2.0
    (found,) = [one for one in made if one is not None]
    assert found is made[4] is estimator.estimate
    assert (found.batches, found.images_per_s, found.seconds_left) == (4, 8.0, 125.0)  # 32 images in 8 s, twice
    assert (
        str(found)
        == "8.0 images/s, about 2 min 05 s left; half of that with generate.steps 10 in place of 20 (other images)"
    )


def test_slow_batches_are_not_waited_for(clock: list[float]) -> None:
    estimator = Estimator(SETTINGS, processes=1)
    assert estimator.note(8, 92, {}, 0.0, small_decoders=False) is None
    clock[0] += 40.0
    found = estimator.note(16, 84, {}, 0.0, small_decoders=False)
    assert found is not None
    assert (found.batches, found.images_per_s, found.seconds_left) == (1, 0.2, 420.0)


@pytest.mark.parametrize(
    ("seconds", "stalled", "expected"),
    [
        ({"denoiser": 8.0, "decoder": 2.0}, 0.0, "generate.steps 7 in place of 20"),  # 8 * 7 / 20 + 2 <= 5
        ({"denoiser": 3.0, "scheduler": 5.0, "decoder": 2.0}, 0.0, "generate.steps 7 in place of 20"),
        ({"denoiser": 4.0, "decoder": 6.0}, 0.0, "a small decoder"),
        ({"denoiser": 4.0, "filters": 6.0}, 0.0, "fewer generate.filters"),
        ({"denoiser": 4.0, "filters": 3.0, "decoder": 3.0}, 0.0, "4 processes"),
        ({"denoiser": 4.0}, 6.0, "a faster disk"),
        ({}, 0.0, "4 processes"),
        ({"sampler": 9.0, "filters": 1.0}, 0.0, "4 processes"),  # whose parts are not known
    ],
)
def test_what_halves_it(seconds: dict[str, float], stalled: float, expected: str) -> None:
    assert halving(SETTINGS, seconds, stalled, processes=2, small_decoders=True).startswith(expected)


def test_a_decoder_is_not_suggested_where_there_is_none() -> None:
    seconds = {"denoiser": 4.0, "decoder": 6.0}
    assert halving(SETTINGS, seconds, 0.0, processes=1, small_decoders=False).startswith("2 processes")


def test_edits_do_a_share_of_the_steps() -> None:
    settings, seconds = SETTINGS.model_copy(update={"pairs": PairSettings(strength=0.5)}), {"denoiser": 1.0}
    assert halving(settings, seconds, 0.0, processes=1).startswith("generate.steps 10")
    few = settings.model_copy(update={"steps": 14})  # 3 of 7 would be left
    assert halving(few, seconds, 0.0, processes=1).startswith("2 processes")


def test_few_steps_are_not_halved() -> None:
    settings, seconds = GenerateSettings(steps=8, engine="onnxruntime"), {"denoiser": 9.0, "decoder": 1.0}
    advice = halving(settings, seconds, 0.0, processes=1)
    assert advice == "generate.quantization int8 and generate.steps 5 in place of 8 (other images)"  # 0.9 / 1.5 * 5 / 8
    for others in ({"engine": "eager"}, {"quantization": "int8"}, {"steps": 4}):
        assert halving(settings.model_copy(update=others), seconds, 0.0, processes=1).startswith("2 processes")


def test_a_job_logs_it_and_keeps_it_with_the_profile(tmp_path: Path) -> None:
    class Measured(NoiseSampler):
        def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
            self.seconds["denoiser"] = self.seconds.get("denoiser", 0.0) + 0.25
            return super().sample(texts, seeds)

    log = Log(tmp_path / "log.jsonl")
    job = job_in(tmp_path / "job", batch_size=2)
    job.run(Measured, log=log)
    log.close()
    (event,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert job.speed is not None
    assert job.speed.estimate is not None
    assert event.items() >= {"event": "estimate", **job.speed.estimate.model_dump()}.items()
    assert job.speed.estimate.halving.startswith("generate.steps ")
    assert job.speed.parts == {"denoiser": 0.25 * len(PLAN) / 2}
    assert job.speed.encoding > 0
    assert list(job.speed.shares) == ["denoiser", "filters", "waiting for files", "rest"]


def test_a_sampler_that_measures_no_parts_takes_time_all_the_same(tmp_path: Path) -> None:
    class Slow(NoiseSampler):
        def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
            time.sleep(0.02)
            return super().sample(texts, seeds)

    class Keep:
        def reasons(self, images: np.ndarray, groups: Sequence[tuple[int, int]]) -> list[None]:
            return [None] * len(images)

    job = job_in(tmp_path / "job", batch_size=4)
    job.run(Slow, lambda: [Keep()])
    assert job.speed is not None
    assert job.speed.estimate is not None
    assert job.speed.estimate.halving.startswith("2 processes")
