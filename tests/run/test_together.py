"""A run that several processes have open: one decides and writes, the others follow."""

from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.base.ranks import OtherProcessError, Ranks
from aimfair.config import Config
from aimfair.config import load as config_file
from aimfair.run.directory import Run
from aimfair.stages import sensitivity
from aimfair.stages.context import write_logits
from tests.base.together import in_threads
from tests.training.samples import images

from .conftest import DEMO


def test_all_see_what_the_first_decides(tmp_path: Path, config: Config) -> None:
    found = []

    def body(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            first = run.is_done("train/1", {"lr": 1}), run.has_record("train/1")
            if here.leads:
                write_text(run.path / "model", "weights")
            run.finish("train/1", {"lr": 1}, [run.path / "model"] if here.leads else [])
            run.log.warn(f"from {here.rank}")
            with run.apart():
                alone = run.has_record("train/1") if here.leads else None
            found.append((first, alone, run.is_done("train/1", {"lr": 1}), run.digest_of("train/1")))

    assert in_threads(body, 3) == [None] * 3
    assert {one[0] for one in found} == {(False, False)}
    assert {one[1] for one in found} == {True, None}
    assert {one[2] for one in found} == {True}
    assert len({one[3] for one in found}) == 1
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "from 0" in log
    assert "from 1" not in log
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        assert run.is_done("train/1", {"lr": 1})


def test_other_inputs_in_one_process_are_refused(tmp_path: Path, config: Config) -> None:
    def body(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            run.is_done("train/1", {"lr": here.rank})

    for end in in_threads(body):
        assert str(end).startswith("process 0 and process 1 differ in what the step train/1 depends on: ")


def test_other_settings_in_one_process_are_refused(tmp_path: Path) -> None:
    def body(here: Ranks) -> None:
        lr = "0.5" if here.rank else "0.25"
        Run.open(tmp_path / "run", config_file.load(DEMO, {"train.lr": lr}), quiet=True, ranks=here)

    for end in in_threads(body):
        assert isinstance(end, AimfairError)
        assert "process 1 has other settings than process 0: train.lr" in str(end)
    with Run.open(tmp_path / "run", config_file.load(DEMO), quiet=True, overwrite=True):
        pass  # the lock is free


@pytest.mark.parametrize("what", ["pixels", "labels"])
def test_other_images_in_one_process_are_refused(tmp_path: Path, config: Config, what: str) -> None:
    """Before any work is shared: for evaluation and for sensitivity."""
    same, other = images(30, 1), images(30, 1)
    if what == "pixels":
        other.images[29] += 1
    else:
        other.target[29] ^= 1

    def evaluate(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            write_logits(run, 7, "full", other if here.rank else same, tmp_path / "logits", "evaluate 7 full")

    def measure(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            sources = {"real_biased": same, "synthetic_fair": other if here.rank else same}
            sensitivity.measure(run, 7, sources, tmp_path / "statistics", "sensitivity 7")

    for body, which in ((evaluate, "of evaluate 7 full"), (measure, "synthetic_fair of sensitivity 7")):
        for end in in_threads(body):
            assert isinstance(end, AimfairError)
            assert str(end).startswith(f"process 0 and process 1 differ in the images {which}: ")


def test_a_second_job_in_the_directory_ends_in_all_processes(tmp_path: Path, config: Config) -> None:
    with Run.open(tmp_path / "run", config, quiet=True):
        first, second = in_threads(lambda here: Run.open(tmp_path / "run", config, ranks=here).close())
    assert "is working in this run; wait for it, or choose another directory" in str(first)
    assert isinstance(second, OtherProcessError)
    assert str(second).startswith("process 0 failed, so the others stop: ")


def test_a_full_disk_in_the_first_ends_the_others(tmp_path: Path, config: Config, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    def body(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            if here.leads:
                monkeypatch.setattr(run._records, "write", full)
            run.finish("train/1", {}, [])

    first, second = in_threads(body)
    assert isinstance(first, OSError)
    assert "process 0 failed, so the others stop: [Errno 28] No space left on device" in str(second)


def test_a_full_disk_in_another_ends_the_first(tmp_path: Path, config: Config) -> None:
    def body(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            run.finish("train/1", {}, [])
            if here.rank == 1:
                raise OSError(28, "No space left on device", "image.png")
            run.is_done("train/2", {})

    first, second = in_threads(body)
    assert isinstance(second, OSError)
    assert str(first) == "process 1 failed, so the others stop: [Errno 28] No space left on device: 'image.png'"
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        assert run.is_done("train/1", {})


@pytest.mark.parametrize("verb", ["prompts", "report"])
def test_what_one_process_does_alone(tmp_path: Path, config: Config, monkeypatch, verb: str) -> None:
    from aimfair.stages import pipeline

    done = []
    monkeypatch.setitem(pipeline.STAGES, verb, lambda run: done.append(run.ranks.size))
    monkeypatch.setattr(pipeline, "prepare_process", lambda _: None)

    def body(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config, quiet=True, ranks=here) as run:
            pipeline.run_stages(run, [verb])

    assert in_threads(body) == [None, None]
    assert done == [1]
