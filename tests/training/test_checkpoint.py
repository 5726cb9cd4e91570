"""A training that is cut off ends with the same bits as one that is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.log import Log
from aimfair.data.settings import AugmentSettings
from aimfair.selective import storage
from aimfair.selective.mask import ParameterMask
from aimfair.training.checkpoint import CHECKPOINT, KIND, VERSION, Checkpoint
from aimfair.training.history import HISTORY, History
from aimfair.training.settings import OptimizerSettings
from tests.training.samples import ActAfter, Net, state_bits, training, without_seconds

SETTINGS = OptimizerSettings(
    lr=0.02, epochs=3, batch_size=16, schedule="cosine", keep="best_validation", augment=AugmentSettings(shift=1)
)
STEPS = 9


def stop_after(steps, model, folder, *, number=signal.SIGINT, settings=SETTINGS, **options):
    """Trains until a signal comes after ``steps`` steps of this call."""
    task, checkpoint = ActAfter(steps, lambda: os.kill(os.getpid(), number)), Checkpoint(folder, 1e9)
    with Interrupt() as interrupt, pytest.raises(Interrupted) as stop:
        training(model, settings, checkpoint=checkpoint, task=task, interrupt=interrupt, **options).fit()
    return stop.value


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batchnorm", ["freeze", "adapt"])
def test_resumed_training_gives_the_same_bits(tmp_path, optimizer, masked, batchnorm):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer})
    options = {"batchnorm": batchnorm}
    if masked:
        options["mask"] = ParameterMask.random(Net(), 0.3)
    expected = Net()
    history = training(expected, settings, **options).fit()

    for steps in (1, 2, 4):  # in the middle of an epoch, and at the end of one
        stop_after(steps, Net(), tmp_path, settings=settings, **options)
    model, task = Net(), ActAfter(10**9, lambda: None)
    resumed = training(model, settings, checkpoint=Checkpoint(tmp_path, 1e9), task=task, **options).fit()
    assert task.done == STEPS
    assert state_bits(model) == state_bits(expected)
    assert without_seconds(resumed) == without_seconds(history)


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
def test_it_can_be_stopped_after_any_step(tmp_path, steps):
    expected = Net()
    training(expected, SETTINGS).fit()
    stop = stop_after(steps, Net(), tmp_path, number=signal.SIGTERM)
    assert stop.exit_code == 143
    model = Net()
    training(model, SETTINGS, checkpoint=Checkpoint(tmp_path, 1e9)).fit()
    assert state_bits(model) == state_bits(expected)


def test_skipped_steps_are_remembered(tmp_path):
    class Failing(Net):
        def forward(self, x):
            return super().forward(x) * (float("nan") if self.training else 1)

    settings = SETTINGS.model_copy(update={"batch_size": 7})
    with pytest.warns(UserWarning, match="skipped"):
        stop_after(3, Failing(), tmp_path, settings=settings)
    with pytest.raises(AimfairError, match="step 5 of 6: 5 steps in a row"), pytest.warns(UserWarning, match="skipped"):
        training(Failing(), settings, checkpoint=Checkpoint(tmp_path, 1e9)).fit()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"seed": 101},
        {"settings": SETTINGS.model_copy(update={"lr": 0.021})},
        {"model": Net(seed=1)},
        {"batchnorm": "freeze"},
        {"mask": ParameterMask.random(Net(), 0.3)},
    ],
    ids=lambda change: next(iter(change), "the same"),
)
def test_a_checkpoint_is_taken_up_by_the_same_training_alone(tmp_path, change):
    stop_after(4, Net(), tmp_path)
    task = ActAfter(10**9, lambda: None)
    arguments = {"model": Net(), "settings": SETTINGS, "seed": 100, **change}
    log = Log(tmp_path / "log.jsonl")
    training(**arguments, checkpoint=Checkpoint(tmp_path, 1e9), task=task, log=log).fit()
    log.close()
    assert task.done == STEPS
    said = (tmp_path / "log.jsonl").read_text()
    assert ("training resumed" in said) == (not change)
    assert (f"{tmp_path}: the training begins again: its checkpoint is of other settings" in said) == bool(change)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    stop_after(4, Net(), tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AimfairError, match=rf"{CHECKPOINT}.*remove it to restart this training"):
        training(Net(), SETTINGS, checkpoint=Checkpoint(tmp_path, 1e9)).fit()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, metadata: metadata.update(position={"epoch": "first", "step": None}),
        lambda tensors, metadata: metadata.pop("position"),
        lambda tensors, metadata: tensors.pop("model/head.weight"),
        lambda tensors, metadata: tensors.update({"optimizer/x/exp_avg": torch.zeros(1)}),
        lambda tensors, metadata: tensors.update({"optimizer/0/exp_avg": torch.zeros(1)}),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path, damage):
    stop_after(4, Net(), tmp_path)
    path = tmp_path / CHECKPOINT
    tensors, metadata = storage.load(path, KIND, VERSION)
    damage(tensors, metadata)
    storage.save(path, KIND, VERSION, {name: tensor.clone() for name, tensor in tensors.items()}, **metadata)
    with pytest.raises(AimfairError, match=rf"{CHECKPOINT}: not a usable checkpoint: .*; remove it to re") as refusal:
        training(Net(), SETTINGS, checkpoint=Checkpoint(tmp_path, 1e9)).fit()
    assert "\n" not in str(refusal.value)


def test_a_damaged_history_is_refused_by_name(tmp_path):
    assert History.load(tmp_path) is None
    (tmp_path / HISTORY).write_text('{"kept_epoch": "one"}')
    with pytest.raises(AimfairError, match=rf"{HISTORY}: kept_epoch: .*; remove it and train again"):
        History.load(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    stop_after(4, Net(), tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        training(Net(), SETTINGS, checkpoint=Checkpoint(tmp_path, 0)).fit()
    monkeypatch.undo()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_it_is_written_no_more_often_than_asked(tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(Checkpoint, "save", lambda *_: saves.append(time.monotonic()))
    training(Net(), SETTINGS, checkpoint=Checkpoint(tmp_path, 1e9)).fit()
    assert not saves
    training(Net(), SETTINGS, checkpoint=Checkpoint(tmp_path, 0)).fit()
    assert len(saves) == STEPS


LONG = SETTINGS.model_copy(update={"epochs": 20})

KILLED = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from aimfair.base.files import remove_temporaries
from aimfair.training.checkpoint import Checkpoint
from tests.training.samples import Net, training
from tests.training.test_checkpoint import LONG

folder = Path(sys.argv[1])
remove_temporaries(folder)
model = Net()
training(model, LONG, checkpoint=Checkpoint(folder, 0)).fit()
save_file(model.state_dict(), folder / "result.safetensors")
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path):
    expected = Net()
    training(expected, LONG).fit()

    path, command = tmp_path / CHECKPOINT, [sys.executable, "-c", KILLED, str(tmp_path)]
    for saves in (2, 17):
        with subprocess.Popen(command) as process:
            seen = {_version(path)}
            while len(seen) <= saves:
                assert process.poll() is None, "it ended before it was killed"
                seen.add(_version(path))
                time.sleep(0.001)
            process.kill()
        assert not (tmp_path / "result.safetensors").exists()
    subprocess.run(command, check=True)
    weights = load_file(tmp_path / "result.safetensors")
    assert {name: tensor.numpy().tobytes() for name, tensor in weights.items()} == state_bits(expected)


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
