"""Models that several processes hold together: they train, measure, select and predict what one process does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.progress import SILENT, Task
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.selective.whole_statistics import load_shards, save_whole
from aimfair.training import sharded_checkpoint
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.execution import prepare
from aimfair.training.feed import Normalize
from aimfair.training.head import head_names
from aimfair.training.history import History
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_model, load_sharded, save_model
from aimfair.training.predict import predict_logits
from aimfair.training.processes import ONE, Processes
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import FinetuneSettings, SensitivitySettings
from aimfair.training.sharding import without_weights
from tests.selective import processes
from tests.training.samples import MODEL, SIZE, TRAIN, VALIDATION, ActAfter, images
from tests.training.test_shared import CPU, SETTINGS, close, together

TUNED = FinetuneSettings(
    **SETTINGS.model_dump(exclude={"momentum", "keep"}),
    momentum=0.9,
    keep="best_validation",
    state="compact",
    batchnorm="adapt",
)
SIZES = SensitivitySettings(batch_size=8)


def test_modules_are_made_without_weights() -> None:
    with without_weights():
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        module[0].weight = module[0].weight
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(module[1].running_var, torch.ones(4))
    assert not nn.Linear(2, 2).weight.is_meta


def trained(
    folder: Path,
    mask: ParameterMask | None,
    both: Processes = ONE,
    task: Task = SILENT,
    *,
    step_in_backward: bool = False,
    **options: object,
) -> tuple[nn.Module, History]:
    model = load_sharded(folder, MODEL, CPU) if both.sharded else load_model(folder)
    settings = (TUNED if mask else SETTINGS).model_copy(update={"step_in_backward": step_in_backward})
    training = Training(model, TRAIN, VALIDATION, settings, MODEL, 100, mask=mask, processes=both, task=task, **options)
    return model, training.fit()


def check_training(both: Processes, directory: Path) -> None:
    plain = load_model(directory / "initial")
    mask = ParameterMask.random(plain, 0.4, seed=3)
    for which in (None, mask):
        (model, history), (alone, expected) = (
            trained(directory / "initial", which, both),
            trained(directory / "initial", which),
        )
        assert all(is_dtensor(parameter) for parameter in model.parameters())
        assert history.kept_epoch == expected.kept_epoch
        stepped, _ = trained(directory / "initial", which, both, step_in_backward=True)
        assert all(
            torch.equal(a.to_local(), b.to_local())
            for a, b in zip(stepped.parameters(), model.parameters(), strict=True)
        )
        assert history.epochs[-1].train_loss == pytest.approx(expected.epochs[-1].train_loss, rel=1e-4)
        save_model(model, directory / "trained")
        both.ranks.meet()
        found = load_model(directory / "trained")
        close(found, alone)
        if which is not None:
            for (name, parameter), before in zip(found.named_parameters(), plain.parameters(), strict=True):
                assert torch.equal(parameter[~mask.bool_of(name)], before[~mask.bool_of(name)])
        both.ranks.meet()


def check_predictions(both: Processes, directory: Path) -> None:
    model, alone = load_sharded(directory / "initial", MODEL, CPU), load_model(directory / "initial")
    for one in (model, alone):
        prepare(one, MODEL)
    for batch_size in (5, 16, 50):
        scores = predict_logits(model, TRAIN, Normalize(MODEL, CPU), batch_size, ranks=both.ranks)
        assert torch.equal(scores, predict_logits(alone, TRAIN, Normalize(MODEL, CPU), batch_size))
    assert head_names(model, SIZE, "") == head_names(alone, SIZE, "")


def check_sensitivity(both: Processes, directory: Path) -> None:
    sources = {name: images(24, seed) for seed, name in enumerate(SOURCES)}
    model, alone = load_sharded(directory / "initial", MODEL, CPU), load_model(directory / "initial")
    expected = measure_sensitivity(alone, sources, SIZES, MODEL, seed=1)
    probe = measure_sensitivity(model, sources, SIZES, MODEL, seed=1, processes=both)
    assert probe.batches == expected.batches
    save_whole(probe, directory / "statistics", model, write=both.ranks.leads)
    both.ranks.meet()
    whole = Sensitivity.load(directory / "statistics", alone)
    for source in SOURCES:
        torch.testing.assert_close(whole.mean(source), expected.mean(source), atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(whole.mean_square(source), expected.mean_square(source), atol=1e-6, rtol=1e-3)
        assert whole.square_norm(source) == pytest.approx(expected.square_norm(source), rel=1e-3)
    shards = load_shards(directory / "statistics", model)
    for rule in ({"rule": "top_k", "density": 0.3}, {"rule": "ratio", "density": 0.2, "granularity": "row"}):
        assert shards.select(**rule).digest == whole.select(**rule).digest
    assert shards.square_norm("real_biased") == pytest.approx(whole.square_norm("real_biased"))


def options(both: Processes, directory: Path) -> dict[str, Checkpoint]:
    return {"checkpoint": both.checkpoint(directory / "model", 0.0, "inputs")}


def check_interruption(both: Processes, directory: Path) -> None:
    mask = ParameterMask.load(directory / "mask")
    whole, _ = trained(directory / "initial", mask, both)
    interrupt = Interrupt()
    task = ActAfter(7, lambda: interrupt.request(2) if not both.ranks.leads else None)
    with pytest.raises(Interrupted):
        trained(directory / "initial", mask, both, task, interrupt=interrupt, **options(both, directory))
    both.ranks.meet()
    record = json.loads((directory / "model" / "checkpoint.json").read_text())
    assert (record["position"]["epoch"], record["position"]["step"]) == (2, 2)
    assert [path.name for path in directory.joinpath("model").glob("checkpoint-*")] == [
        f"checkpoint-{record['number']}"
    ]
    model, _ = trained(
        directory / "initial", mask, both, task := ActAfter(10**9, lambda: None), **options(both, directory)
    )
    assert task.done == 10
    for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(a.to_local(), b.to_local()), name


def check_full_disk(both: Processes, directory: Path) -> None:
    """In process 1, at the third checkpoint: all end, and go on from the second."""
    mask, writer = ParameterMask.load(directory / "mask"), sharded_checkpoint.HuggingFaceStorageWriter
    whole, _ = trained(directory / "initial", mask, both)
    write, saves = writer.write_data, []

    def write_data(self: object, *arguments: object) -> object:
        saves.append(None)
        if both.ranks.rank == 1 and len(saves) == 3:
            raise OSError(28, "No space left on device")
        return write(self, *arguments)

    writer.write_data = write_data
    try:
        with pytest.raises(AimfairError, match="process 1 cannot write its part of the checkpoint: no space left"):
            trained(directory / "initial", mask, both, **options(both, directory / "full"))
    finally:
        writer.write_data = write
    both.ranks.meet()
    model, _ = trained(directory / "initial", mask, both, **options(both, directory / "full"))
    assert len(saves) == 3
    for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(a.to_local(), b.to_local()), name


def begin(rank: int, directory: Path) -> None:
    both = together(rank, directory, strategy="fsdp2")
    if both.ranks.leads:
        save_model(build_model(MODEL, 2, 1), directory / "initial")
        ParameterMask.random(load_model(directory / "initial"), 0.4, seed=3).save(directory / "mask")
    both.ranks.meet()
    check_training(both, directory)
    check_predictions(both, directory)
    check_sensitivity(both, directory)
    check_interruption(both, directory)
    check_full_disk(both, directory)
    mask, interrupt = ParameterMask.load(directory / "mask"), Interrupt()
    task = ActAfter(7, lambda: interrupt.request(2))
    with pytest.raises(Interrupted):
        trained(directory / "initial", mask, both, task, interrupt=interrupt, **options(both, directory / "cut"))


def go_on(rank: int, directory: Path) -> None:
    """With three processes, from what two have left."""
    three = together(rank, directory, strategy="fsdp2")
    mask, task = ParameterMask.load(directory / "mask"), ActAfter(10**9, lambda: None)
    if three.ranks.leads:
        folder = directory / "damaged" / "model"
        folder.mkdir(parents=True)
        record = (directory / "cut" / "model" / "checkpoint.json").read_text()
        (folder / "checkpoint.json").write_text(record)
        (folder / f"checkpoint-{json.loads(record)['number']}").mkdir()
    three.ranks.meet()
    with pytest.raises(
        AimfairError, match=r"checkpoint.json: not a usable checkpoint: it lacks .*; remove it to restart"
    ):
        trained(directory / "initial", mask, three, **options(three, directory / "damaged"))
    model, history = trained(directory / "initial", mask, three, task, **options(three, directory / "cut"))
    assert task.done == 10
    save_model(model, directory / "resumed")
    three.ranks.meet()
    alone, expected = trained(directory / "initial", mask)
    close(load_model(directory / "resumed"), alone)
    assert history.kept_epoch == expected.kept_epoch
    one_process = {"checkpoint": Checkpoint(directory / "whole", 0.0, "inputs")}
    if three.ranks.leads:
        interrupt = Interrupt()
        stop = ActAfter(7, lambda: interrupt.request(2))
        with pytest.raises(Interrupted):
            trained(directory / "initial", mask, task=stop, interrupt=interrupt, **one_process)
    three.ranks.meet()
    more = {"checkpoint": three.checkpoint(directory / "whole", 0.0, "inputs")}
    model, _ = trained(directory / "initial", mask, three, task := ActAfter(10**9, lambda: None), **more)
    assert task.done == 10
    save_model(model, directory / "resumed")
    three.ranks.meet()
    close(load_model(directory / "resumed"), alone)


@pytest.mark.slow
def test_processes_that_hold_a_model_together(tmp_path: Path) -> None:
    processes.run(begin, tmp_path)
    mask, task = ParameterMask.load(tmp_path / "mask"), ActAfter(10**9, lambda: None)
    shutil.copytree(tmp_path / "cut", tmp_path / "copy")
    one_process = {"checkpoint": Checkpoint(tmp_path / "copy" / "model", 0.0, "inputs")}
    model, _ = trained(tmp_path / "initial", mask, task=task, **one_process)
    assert task.done == 10
    close(model, trained(tmp_path / "initial", mask)[0])
    processes.run(go_on, tmp_path, 3)
