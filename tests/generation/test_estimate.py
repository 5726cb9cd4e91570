"""How long a job will take, and what halves that."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from aimfair.base.log import Log
from aimfair.diffusion.sampler import Samples
from aimfair.generation import estimate
from aimfair.generation.estimate import Estimator, halving
from aimfair.generation.settings import GenerateSettings
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
        made.append(estimator.note(8 * batch, left=1000, seconds={"denoiser": 1.0}, stalled=0.0))
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
    assert estimator.note(8, 92, {}, 0.0) is None
    clock[0] += 40.0
    found = estimator.note(16, 84, {}, 0.0)
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
    ],
)
def test_what_halves_it(seconds: dict[str, float], stalled: float, expected: str) -> None:
    assert halving(SETTINGS, seconds, stalled, processes=2).startswith(expected)


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
