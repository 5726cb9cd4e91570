"""A training continues from the checkpoint of another strategy: whole models from shards, and the other way round."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.selective.mask import ParameterMask
from aimfair.training import sharded_checkpoint
from aimfair.training.checkpoint import CHECKPOINT, FOLDERS, SHARDED, Checkpoint, same_training
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_model, load_sharded, save_model
from aimfair.training.settings import FinetuneSettings, OptimizerSettings
from aimfair.training.sharded_checkpoint import ShardedCheckpoint
from aimfair.training.sharding import whole
from tests.training.samples import MODEL, TRAIN, VALIDATION, ActAfter

ALL = OptimizerSettings(lr=0.01, epochs=2, batch_size=11)
MASKED = FinetuneSettings(lr=0.01, epochs=2, batch_size=11, batchnorm="adapt", keep="best_validation")
STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initial")
    save_model(build_model(MODEL, 2, 1), folder)
    return folder


def train(
    initial: Path, folder: Path, settings: OptimizerSettings, *, sharded: bool, stop: int = 0, inputs: str = "x"
) -> tuple[dict[str, bytes], int]:
    """What the training has made, and its steps, or what is there when it is interrupted after ``stop`` of them."""
    model = load_sharded(initial, MODEL, torch.device("cpu")) if sharded else load_model(initial)
    mask = ParameterMask.random(load_model(initial), 0.3, seed=2) if isinstance(settings, FinetuneSettings) else None
    form = ShardedCheckpoint if sharded else Checkpoint
    interrupt = Interrupt()
    task = ActAfter(stop or 10**9, lambda: interrupt.request(2))
    training = Training(
        model, TRAIN, VALIDATION, settings, MODEL, 100, mask=mask, task=task, interrupt=interrupt,
        checkpoint=form(folder, 1e9, inputs),
    )  # fmt: skip
    if stop:
        with suppress(Interrupted):
            training.fit()
    else:
        training.fit()
    return bits(model), task.done


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: whole(tensor).numpy().tobytes() for name, tensor in model.state_dict().items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("settings", [ALL, MASKED], ids=["all", "masked"])
@pytest.mark.parametrize("first", [True, False], ids=["from shards", "from whole models"])
def test_the_other_form_continues(initial: Path, tmp_path: Path, settings: OptimizerSettings, first: bool) -> None:
    """To the bits of a training that nothing has interrupted; each form removes what the other has left."""
    expected, _ = train(initial, tmp_path / "none", settings, sharded=not first)
    folder = tmp_path / "model"
    train(initial, folder, settings, sharded=first, stop=5)
    forms = [{CHECKPOINT}, {SHARDED, FOLDERS[0]}]
    assert names(folder) == forms[first]
    train(initial, folder, settings, sharded=not first, stop=6)  # steps that were done before count
    assert names(folder) == forms[not first]
    found, steps = train(initial, folder, settings, sharded=first)
    assert steps == STEPS
    assert found == expected
    (Checkpoint if first else ShardedCheckpoint)(folder, 0.0).remove()
    assert names(folder) == set()


@pytest.mark.parametrize("first", [True, False])
def test_another_training_does_not(initial: Path, tmp_path: Path, first: bool) -> None:
    train(initial, tmp_path, MASKED, sharded=first, stop=5, inputs="x")
    _, steps = train(initial, tmp_path, MASKED, sharded=not first, stop=3, inputs="y")
    assert steps == 3


@pytest.mark.parametrize("first", [True, False])
def test_a_damaged_one_is_refused_by_name(initial: Path, tmp_path: Path, first: bool) -> None:
    train(initial, tmp_path, MASKED, sharded=first, stop=5)
    paths = list(tmp_path.glob(f"{FOLDERS[0]}/*.safetensors")) if first else [tmp_path / CHECKPOINT]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-10])
    name = SHARDED if first else CHECKPOINT
    with pytest.raises(AimfairError, match=rf"{name}: not a usable checkpoint: .*; remove it to restart") as refusal:
        train(initial, tmp_path, MASKED, sharded=not first)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_leaves_the_checkpoint_before(
    initial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(initial, tmp_path / "none", ALL, sharded=True)
    folder = tmp_path / "model"
    train(initial, folder, ALL, sharded=True, stop=5)
    with monkeypatch.context() as patch:
        patch.setattr(sharded_checkpoint.HuggingFaceStorageWriter, "write_data", full)
        message = (
            r"training: .*checkpoint-1: process 0 cannot write its part of the checkpoint: no space left on device; the"
            " checkpoint before it is kept$"
        )
        with pytest.raises(AimfairError, match=message) as refusal:
            train(initial, folder, ALL, sharded=True, stop=6)
    assert "\n" not in str(refusal.value)
    assert train(initial, folder, ALL, sharded=True) == (expected, STEPS)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_initial_weights_are_compared_where_both_know_them() -> None:
    assert same_training("facts.weights", "facts.weights")
    assert same_training("facts.weights", "facts.")
    assert not same_training("facts.weights", "facts.others")
    assert not same_training("facts.", "others.")
