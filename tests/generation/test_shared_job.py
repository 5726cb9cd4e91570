"""Several processes share a job: the files are those of a single process, even after kills and errors."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import yaml

from aimfair.base import ranks
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.ranks import Ranks, processes, rank_here
from aimfair.commands import cli
from aimfair.config import load as config_file
from aimfair.generation.job import Job
from aimfair.generation.manifest import Manifest
from aimfair.generation.provenance import Provenance, refuse_different_processes
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.summary import GenerationSummary
from aimfair.run.directory import Run
from aimfair.stages import generate, prompts
from tests.base.together import in_threads
from tests.generation.crash_points import contents
from tests.generation.samples import SIZE, NoiseSampler, prompt_settings, small_plan
from tests.training.samples import RESNET

PLAN = small_plan()


def share(folder: Path, here: Ranks, sampler: NoiseSampler, **changes: Any) -> Job:
    settings = {"batch_size": 3, "max_rejections": 1, "filters": {"near_duplicates": 4}, **changes}
    job = Job(folder, PLAN, Provenance({}), GenerateSettings.model_validate(settings), SIZE, ranks=here)
    job.run(lambda: sampler)
    return job


def often_alike(seed: int, pixels: np.ndarray) -> np.ndarray:
    """Black, one of three images, or noise."""
    match seed % 5:
        case 0:
            return pixels * 0
        case 1:
            return np.arange(pixels.size, dtype=np.uint8).reshape(pixels.shape) // (1 + seed % 3)
        case _:
            return pixels


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_processes_changes_nothing(tmp_path: Path, size: int) -> None:
    alone = share(tmp_path / "alone", Ranks(), NoiseSampler(change=often_alike))
    samplers = [NoiseSampler(change=often_alike) for _ in range(size)]
    jobs: dict[int, Job] = {}

    def body(here: Ranks) -> None:
        jobs[here.rank] = share(tmp_path / "shared", here, samplers[here.rank])

    assert in_threads(body, size) == [None] * size
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert {*alone.rejected} == {"black", "duplicate", "near_duplicate"}
    assert all(job.rejected == alone.rejected and job.done == len(PLAN) for job in jobs.values())
    assert alone.speed is not None
    for job in jobs.values():
        assert job.speed is not None
        assert (job.speed.images, job.speed.processes) == (alone.speed.images, size)
    first = [sampler.batches[0] for sampler in samplers]
    assert first == [[planned.seed for planned in PLAN[3 * rank : 3 * rank + 3]] for rank in range(size)]


def test_an_error_in_one_process_ends_the_others(tmp_path: Path) -> None:
    def body(here: Ranks) -> None:
        def change(seed: int, pixels: np.ndarray) -> np.ndarray:
            if here.rank == 1:
                raise RuntimeError("no memory left")
            return pixels

        share(tmp_path, here, NoiseSampler(change=change))

    first, second = in_threads(body)
    assert str(first) == "process 1 failed, so the others stop: no memory left"
    assert isinstance(first, AimfairError)
    assert str(second) == "no memory left"


def test_processes_that_would_make_other_images_are_refused() -> None:
    made = [Provenance({"model": model, "generate": {"steps": 2}}) for model in ("01", "02")]
    errors = in_threads(lambda here: refuse_different_processes(here, made[here.rank]))
    for error in errors:
        assert isinstance(error, AimfairError)
        assert "process 1 would make other images than process 0: model differ; all need the same" in str(error)
    assert in_threads(lambda here: refuse_different_processes(here, made[0])) == [None, None]


def test_too_many_rejections_end_all(tmp_path: Path) -> None:
    bad = {planned.seed for planned in PLAN[3:6]}  # all in the first batch of the second process

    def body(here: Ranks) -> None:
        sampler = NoiseSampler(change=lambda seed, pixels: pixels * 0 if seed in bad else pixels)
        share(tmp_path, here, sampler, max_rejections=0.05)

    for end in in_threads(body):
        assert "3 images rejected (black 3), more than 5% of the 32 wanted" in str(end)


def test_a_stop_in_one_process_is_a_stop_in_all(tmp_path: Path) -> None:
    def body(here: Ranks) -> None:
        if here.rank == 1:
            raise Interrupted(signal.SIGTERM)
        share(tmp_path, here, NoiseSampler())

    for end in in_threads(body):
        assert isinstance(end, Interrupted)
        assert end.exit_code == 143


def test_one_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_HOURS_TO_MEET", 0.1 / 3600)
    with pytest.raises(AimfairError, match=r"process 0 of 2 waited .* hours for the others"):
        Ranks(0, 2, dist.HashStore()).gather("")


def test_long_texts() -> None:
    """A plan of a hundred thousand images has more to tell than the store takes at a time."""
    first = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    second = dist.TCPStore("localhost", first.port, None, False, wait_for_workers=False)
    text = "ü" * 10_000_000
    other = Ranks(1, 2, second)
    thread = threading.Thread(target=other.gather, args=("",))
    thread.start()
    assert Ranks(0, 2, first).gather(text) == [text, ""]
    thread.join()


def test_a_signal_ends_waiting() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            Ranks(0, 2, dist.HashStore(), interrupt).gather("")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: found 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: found '2', expected a number below WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK: found ''"),
    ],
)
def test_another_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        rank_here()
    for name in values:
        monkeypatch.delenv(name)
    assert (processes(), rank_here()) == (1, 0)


@pytest.mark.slow
def test_kill_9_of_one_of_two(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.generation.shared_job", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


# -- torchrun ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    settings = {
        "device": "cpu",
        "threads": 1,
        "data": {"image_size": SIZE, "minority_ratio": 0.5},
        "prompts": prompt_settings().model_dump(),
        "generate": {"model": str(model), "steps": 1, "batch_size": 2, "balanced_per_group": 3, "biased_total": 6},
        "model": {"config": RESNET},
        "methods": {"full": {"rule": "all"}},
        "default_method": "full",
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def command(verb: str, config: Path, run: Path, size: int, *more: str) -> list[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m", "--"]
        if size > 1
        else ["-m"]
    )
    return [sys.executable, *launcher, "aimfair", verb, "--config", str(config), "--run", str(run), *more]


def call(verb: str, config: Path, run: Path, size: int = 1, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(verb, config, run, size, *more), capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_torchrun(tmp_path: Path, config: Path) -> None:
    for name in ("one", "two"):
        with Run.open(tmp_path / name, config_file.load(config), quiet=True) as run:
            prompts.run(run)
            if name == "one":
                generate.run(run)
    done = call("generate", config, tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two" / "synthetic") == contents(tmp_path / "one" / "synthetic")
    assert len(Manifest(tmp_path / "two" / "synthetic").records) == 18
    speed = GenerationSummary.load(tmp_path / "two" / "generation.json").speed
    assert speed is not None
    assert speed.processes == 2


@pytest.mark.parametrize(
    "words",
    [
        ["ablate", "density"],
        ["run", "--config", "demo", "--on", "ray"],
        ["scan", "--config", "demo"],
        ["export", "--to", "there"],
    ],
    ids=lambda words: words[0],
)
def test_other_verbs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """Before anything is written, or the other processes are waited for."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run = [] if words[0] == "scan" else ["--run", str(tmp_path / "run")]
    assert cli.main([*words, *run]) == 2
    assert "found WORLD_SIZE=2, expected one process; start it without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # a minute
def test_torchrun_and_ctrl_c(tmp_path: Path, config: Path) -> None:
    """Signals reach every process; the same files in the end, of one process."""
    slow = ("--generate.steps", "60", "--generate.batch_size", "1", "--generate.biased_total", "4")
    for name in ("cut", "whole"):
        assert call("prompts", config, tmp_path / name, 1, *slow).returncode == 0
    words = command("generate", config, tmp_path / "cut", 1, *slow)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(words, env=common | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    images = tmp_path / "cut" / "synthetic" / "images"
    end = time.monotonic() + 60
    while not images.exists() or not list(images.iterdir()):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in both), [process.communicate() for process in both]
        time.sleep(0.05)
    for process in both:
        process.send_signal(signal.SIGINT)
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "stopped by SIGINT; the same command continues" in said
    for name in ("cut", "whole"):
        done = call("generate", config, tmp_path / name, 1, *slow)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "cut" / "synthetic") == contents(tmp_path / "whole" / "synthetic")
