"""Trainings whose backward passes take the steps, and whose optimizer state is in host memory: the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aimfair.base.errors import AimfairError, ConfigError, DivergedError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.settings import Settings
from aimfair.config import load as config_file
from aimfair.methods.group_dro import GroupWeights
from aimfair.selective import offload
from aimfair.selective.mask import ParameterMask
from aimfair.training import optimizer
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.loop import Training
from aimfair.training.optimizer import build_optimizer
from aimfair.training.samplers import groups_of
from aimfair.training.settings import FinetuneSettings, OptimizerSettings
from tests.config.test_config import DEMO
from tests.selective.test_offload import CheckedCopies
from tests.training.samples import (
    MODEL,
    TRAIN,
    VALIDATION,
    ActAfter,
    Net,
    SmallMemory,
    state_bits,
    training,
    without_seconds,
)

PLAIN = OptimizerSettings(lr=0.01, epochs=2, batch_size=11)
TUNED = FinetuneSettings(lr=0.01, epochs=2, batch_size=11, batchnorm="adapt", keep="best_validation")
CPU = torch.device("cpu")


def stepping(settings: Settings) -> Any:
    return settings.model_copy(update={"step_in_backward": True})


def fit(model: nn.Module, settings: OptimizerSettings, *, masked: bool = False, **options: Any) -> Training:
    mask = ParameterMask.random(model, 0.4, seed=3) if masked else None
    work = Training(model, TRAIN, VALIDATION, settings, MODEL, 100, mask=mask, **options)
    work.history = without_seconds(work.fit())
    return work


@pytest.mark.parametrize(("case", "most"), [("all", 64), ("sgd", 4), ("masked", 64), ("masked", 4), ("objective", 4)])
def test_the_bits_of_ordinary_steps(case: str, most: int) -> None:
    """Also in batches that are split as memory for the whole is lacking; no gradient is left after a step."""
    settings = {
        "sgd": PLAIN.model_copy(update={"optimizer": "sgd"}),
        "masked": TUNED,
    }.get(case, PLAIN)
    models, found = [SmallMemory(Net(), most) for _ in "12"], []
    for model, of in zip(models, (settings, stepping(settings)), strict=True):
        options: dict[str, Any] = {"masked": case == "masked"}
        if case == "objective":
            options["objective"] = GroupWeights(groups_of(TRAIN), 0.1, 0.5, CPU)
        left: list[bool] = []
        look = lambda model=model, left=left: left.append(all(p.grad is None for p in model.parameters()))  # noqa: E731
        found.append(fit(model, of, task=ActAfter(3, look), **options).history)
        assert left == [of.step_in_backward]
    assert found[0] == found[1]
    assert state_bits(models[0]) == state_bits(models[1])
    assert max(size for model in models for size in model.sizes[-12:]) <= max(most, 11)


@pytest.mark.parametrize("first", [PLAIN, stepping(PLAIN)])
def test_either_continues_a_training_of_the_other(first: OptimizerSettings, tmp_path: Path) -> None:
    second = PLAIN if first is not PLAIN else stepping(PLAIN)
    whole, cut = Net(), Net()
    fit(whole, PLAIN)
    interrupt, checkpoint = Interrupt(), Checkpoint(tmp_path, 0.0)
    with pytest.raises(Interrupted):
        fit(Net(), first, checkpoint=checkpoint, interrupt=interrupt, task=ActAfter(3, lambda: interrupt.request(2)))
    fit(cut, second, checkpoint=checkpoint, task=(task := ActAfter(10**9, lambda: None)))
    assert task.done == 8
    assert state_bits(cut) == state_bits(whole)


def test_a_gradient_that_is_not_finite_ends_the_training() -> None:
    """A tensor whose gradient comes earlier has taken its step: the step cannot be skipped."""
    model = Net()
    model.convolution.weight.register_hook(lambda grad: grad * float("nan"))
    before = model.head.weight.clone()
    message = (
        r"training: epoch 1, step 1 of 4: the gradient of convolution.weight is NaN or infinite, and with"
        r" step_in_backward such a step cannot be skipped; choose a lower lr, or set step_in_backward to false"
    )
    with pytest.raises(DivergedError, match=message):
        fit(model, stepping(PLAIN))
    assert not torch.equal(model.head.weight, before)


def test_lack_of_memory_in_a_later_step_ends_the_training() -> None:
    model = SmallMemory(Net(), 64)

    def shrink() -> None:
        model.most = 4

    with pytest.raises(
        AimfairError, match=r"out of memory with 1\d images, in the middle of a step_in_backward; lower"
    ):
        fit(model, stepping(PLAIN), task=ActAfter(2, shrink))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_result_depends_on_it() -> None:
    both = TUNED.model_copy(update={"step_in_backward": True, "offload": True})
    assert both.of_result == TUNED.of_result
    assert {**TUNED.of_result, "step_in_backward": False, "offload": False} == TUNED.model_dump(mode="json")
    assert training(Net(), PLAIN).identity() == training(Net(), stepping(PLAIN)).identity()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"finetune.offload": "true", "finetune.state": "dense"},
            "finetune.offload: needs state: compact, found dense",
        ),
        (
            {"model.compile": "true", "train.step_in_backward": "true"},
            "train.step_in_backward: saves nothing with model",
        ),
    ],
)
def test_settings_that_do_not_go_together(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_file.load(DEMO, flags)


class TestOffload:
    def test_the_bits_of_state_on_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a fake copy engine on the CPU."""
        monkeypatch.setattr(offload, "COPIES", CheckedCopies)
        for module in (offload, optimizer):
            monkeypatch.setattr(module, "can_copy", lambda _: True)
        models = [Net() for _ in "123"]
        away = TUNED.model_copy(update={"offload": True})
        for model, settings in zip(models, (TUNED, away, stepping(away)), strict=True):
            work = fit(model, settings, masked=True)
            assert work.optimizer.offload == settings.offload
        assert state_bits(models[0]) == state_bits(models[1]) == state_bits(models[2])

    def test_where_it_cannot_work(self) -> None:
        away = TUNED.model_copy(update={"offload": True})
        with pytest.raises(ConfigError, match=r"finetune\.offload: found true, expected false: training runs on cpu"):
            build_optimizer(Net(), away)
        with pytest.raises(ConfigError, match=r"expected false with distributed\.strategy fsdp2"):
            optimizer.require_offloadable(away, torch.device("cuda"), sharded=True)
