"""Steps side by side: their order, the same results, and what happens when something fails."""

import json
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.cluster import shared
from aimfair.cluster.settings import ClusterSettings
from aimfair.config import Config
from aimfair.generation.manifest import Manifest
from aimfair.generation.worker import Worker
from aimfair.run.directory import Run
from aimfair.run.schedule import side_by_side
from aimfair.run.steps import Assignment, Outputs, Step
from aimfair.stages import generate
from aimfair.stages.pipeline import run_stages
from tests.cluster.inline_pool import InlinePool
from tests.tiny_run import METHODS, settings

SOME = ("full", "aimfair", "jtt", "erm")
INDEPENDENT = ("train", "sensitivity", "tune", "select", "finetune", "evaluate")


def nothing(config: Config) -> None:
    pass


def make(run: Run, *, name: str) -> Outputs:
    """A file with the name of the step, and what it tells."""
    path = run.path / "made" / f"{name.replace('/', '-')}.txt"
    path.parent.mkdir(exist_ok=True)
    run.log("worked", step=name)
    with run.progress.task(name, 2) as task:
        task.advance(2)
    if name == "broken":
        run.log.warn("about to break")
        raise AimfairError("broken: found one thing, expected another")
    path.write_text(name)
    return {name: [path]}


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", settings(tiny / "photographs"), quiet=True) as run:
        yield run


def step(run: Run, name: str, *needs: str, **more: Any) -> Step:
    def assign() -> Assignment | None:
        inputs = {"name": name, "upstream": [run.digest_of(need) for need in needs]}
        return None if run.is_done(name, inputs) else Assignment({name: inputs}, partial(make, name=name))

    return Step(name, needs, assign, **more)


def steps_of(run: Run) -> list[Step]:
    return [
        step(run, "a"),
        step(run, "b"),
        step(run, "of_a", "a"),
        step(run, "of_both", "a", "b"),
        step(run, "last", "of_a", "of_both", local=True),
        step(run, "after_last", "last"),
    ]


def do(run: Run, pool: InlinePool, *more: Step) -> None:
    side_by_side(pool, run, {run: [*steps_of(run), *more]}, "work", nothing)


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_each_step_waits_for_what_it_needs_and_no_more(run: Run) -> None:
    pool = InlinePool()
    do(run, pool)
    assert pool.made == ["b", "a", "of_both", "of_a", "after_last"], "the last that can begin comes first"
    assert [event["step"] for event in events(run, "worked")] == ["b", "a", "of_both", "of_a", "last", "after_last"]
    assert all(run.has_record(step.name) for step in steps_of(run))


def test_what_is_finished_is_not_done_again(run: Run) -> None:
    do(run, InlinePool())
    (run.path / "made/a.txt").unlink()
    pool = InlinePool()
    do(run, pool)
    assert pool.made == ["a"], "to the same bytes, so that what follows stays"
    assert not (run.path / ".workers").exists()


def test_a_step_whose_process_is_lost_begins_again(run: Run) -> None:
    pool = InlinePool(retries=2, lose={"a": 2})
    do(run, pool)
    assert pool.made.count("a") == 3
    warnings = [event["message"] for event in events(run, "warning")]
    assert warnings == [f"a: its process died; begins again, {n} of 2 times" for n in (1, 2)]


def test_a_step_whose_process_is_lost_too_often_ends_the_run_which_continues(run: Run) -> None:
    with pytest.raises(AimfairError, match=r"^a: its process died, after 2 retries \(cluster\.retries\)"):
        do(run, InlinePool(retries=2, lose={"a": 3}))
    assert run.has_record("b")
    pool = InlinePool()
    do(run, pool)
    assert "b" not in pool.made
    assert run.has_record("after_last")


def test_an_error_is_that_of_the_step_and_stops_the_others(run: Run) -> None:
    pool = InlinePool()
    with pytest.raises(AimfairError, match=r"^broken: found one thing, expected another$"):
        do(run, pool, step(run, "broken"))
    assert pool.stopped
    assert pool.made == ["broken"]
    assert [event["message"] for event in events(run, "warning")] == ["about to break"]


def test_an_interrupt_stops_all_steps_and_the_run_continues(run: Run) -> None:
    pool = InlinePool()
    pool.before = lambda name: run.interrupt._handle(signal.SIGTERM, None) if name == "a" else None
    with pytest.raises(Interrupted) as raised:
        do(run, pool)
    assert (raised.value.exit_code, pool.stopped, pool.made) == (143, True, ["b", "a"])
    assert run.has_record("a"), "it was finished"
    run.interrupt._signal = None
    pool = InlinePool()
    do(run, pool)
    assert pool.made == ["of_both", "of_a", "after_last"]


def test_a_process_that_a_signal_stops_is_as_good_as_lost(run: Run) -> None:
    """That of a machine that is taken away; nobody has asked this run to stop."""
    do(run, InlinePool(signal={"b": 1}))
    assert [event["message"] for event in events(run, "warning")] == [
        "b: its process was stopped by SIGTERM; begins again, 1 of 1 times"
    ]


def test_machines_must_see_the_same_folder_and_have_the_same_software(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with shared.shared(run.path) as mark:
        mark.check()
        other = shared.Shared(tmp_path / "elsewhere", mark.token, mark.software)
        with pytest.raises(AimfairError, match=r"elsewhere: on .* this folder is not there; all machines .* NFS"):
            other.check()
        (run.path / ".workers" / "token").write_text("of another disk")
        with pytest.raises(AimfairError, match="this folder is another one"):
            mark.check()
        (run.path / ".workers" / "token").write_text(mark.token)
        monkeypatch.setattr(shared, "software", lambda: "aimfair 0.0, torch 1, Python 2")
        with pytest.raises(AimfairError, match=r"found aimfair 0.0, torch 1, Python 2, expected torch"):
            mark.check()


def test_what_tasks_take_may_change_in_a_finished_run(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "run", tmp_path / "run")
    config = settings(tiny / "photographs").model_copy(update={"cluster": ClusterSettings(cpus=2)})
    Run.open(tmp_path / "run", config, quiet=True).close()
    found = Run.config_of(tmp_path / "run")
    assert found is not None
    assert found.cluster.cpus == 2


def without_times(path: Path) -> object:
    """The contents of a file of a run, but for seconds and the digests that follow from them."""
    if path.suffix != ".json":
        return path.read_bytes()
    return json.loads(path.read_text(), object_hook=lambda of: {key: of[key] for key in of if key != "seconds"})


def test_the_stages_give_what_they_give_one_after_another(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    torch.set_num_threads(1)
    path = Path(shutil.copytree(tiny / "run", tmp_path / "run"))
    shutil.rmtree(path / "seeds")
    config = settings(tiny / "photographs", methods={name: METHODS[name] for name in SOME}, default_method="aimfair")
    with Run.open(path, config, overwrite=True, quiet=True) as run:
        run.pool = InlinePool(lose={"sensitivity 7": 1})
        run_stages(run, INDEPENDENT)
        assert len(run.pool.made) == 2 * (3 + len(SOME) + 1 + len(SOME)) + 1
    for seed in (7, 8):
        home = tiny / "run" / "seeds" / str(seed)
        models = ["baseline", *(f"finetuned/{name}" for name in SOME)]
        files = [f"{model}/{file}" for model in models for file in ("model.safetensors", "config.json", "history.json")]
        files += ["sensitivity.safetensors", "masks/aimfair.safetensors", "logits/jtt.safetensors"]
        for file in files:
            assert without_times(path / "seeds" / str(seed) / file) == without_times(home / file), file


def test_ranges_of_images_are_those_of_one_process(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is lost when it has made its images, and begins again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    torch.set_num_threads(1)
    config = settings(tiny / "photographs", generate={"batch_size": 8})
    paths, made = [tmp_path / "one", tmp_path / "several"], list[int]()
    complete = Worker._complete
    monkeypatch.setattr(
        Worker, "_complete", lambda self, image, *more: made.append(image) or complete(self, image, *more)
    )
    for path, pool in zip(paths, (None, InlinePool(lose={"generate 0 1": 1})), strict=True):
        shutil.copytree(tiny / "run", path)
        shutil.rmtree(path / "synthetic")
        made.clear()
        with Run.open(path, config, overwrite=True, quiet=True) as run:
            run.pool = pool
            generate.run(run)
    assert pool is not None
    assert sorted(pool.made) == [f"generate 0 {number}" for number in (0, 1, 1, 2, 3)]
    one, several = (Manifest(path / "synthetic").records for path in paths)
    assert one == several
    assert sorted(made) == sorted(one), "none of them twice"
    for record in one.values():
        assert (paths[0] / "synthetic" / record.file).read_bytes() == (
            paths[1] / "synthetic" / record.file
        ).read_bytes()
    assert not (paths[1] / "synthetic" / "shards").exists()
