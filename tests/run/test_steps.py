"""The steps of a run: what they need, and what is left of them."""

import gc
import pickle
import shutil
import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest

from aimfair.run.directory import Run
from aimfair.run.steps import Step, collecting
from aimfair.stages import evaluate, finetune, select, sensitivity, train
from tests.tiny_run import settings

STAGES = (train, sensitivity, select, finetune, evaluate)


def everything_before(step: Step, steps: Iterable[Step]) -> set[str]:
    by_name = {one.name: one for one in steps}
    found, todo = set[str](), list(step.needs)
    while todo:
        name = todo.pop()
        found.add(name)
        todo += by_name[name].needs if name in by_name else ()
    return found


def read_by(step: Step, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The steps whose digests are in the inputs of this one."""
    read, digest_of = set[str](), Run.digest_of
    with monkeypatch.context() as patch:
        patch.setattr(Run, "digest_of", lambda run, name, **more: read.add(name) or digest_of(run, name, **more))
        step.assign()
    return read


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Iterable[Run]:
    shutil.copytree(tiny / "run", tmp_path / "run")
    with Run.open(tmp_path / "run", settings(tiny / "photographs"), quiet=True) as run:
        yield run


def test_a_step_needs_the_steps_whose_results_it_reads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step for stage in STAGES for step in stage.steps(run)]
    for step in steps:
        before = everything_before(step, steps)
        for name in read_by(step, monkeypatch):
            assert name in before or name.rpartition("/")[0] in before, f"{step.name} reads {name}"


def test_what_is_left_of_a_step_can_be_sent_to_another_process(run: Run) -> None:
    steps = [step for stage in STAGES for step in stage.steps(run)]
    assert not any(step.assign() for step in steps)
    shutil.rmtree(run.path / "stages/train")
    left = {step.name: step.assign() for step in train.steps(run)}
    assert list(left) == ["train/7", "train/8"]
    for name, assignment in left.items():
        assert list(assignment.inputs) == [name]
        assert pickle.loads(pickle.dumps(assignment.make)).keywords == assignment.make.keywords


def test_only_the_masks_that_are_missing_are_selected(run: Run) -> None:
    (run.path / "stages/select/7/random.json").unlink()
    seven, eight = (step.assign() for step in select.steps(run))
    assert (list(seven.inputs), eight) == (["select/7/random"], None)


@pytest.mark.parametrize("frozen", [False, True])
def test_garbage_of_a_step_is_freed_without_a_look_at_what_was_there_before(frozen: bool) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    gc.collect()
    gc.unfreeze()
    try:
        if frozen:  # by the caller
            gc.freeze()
        with collecting():
            assert gc.get_freeze_count() > 10_000
            cycle = weakref.ref(Cycle())
        assert cycle() is None
        assert (gc.get_freeze_count() > 0) == frozen
    finally:
        gc.freeze()  # as tests/conftest.py leaves it
