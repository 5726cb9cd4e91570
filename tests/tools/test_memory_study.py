"""The study of memory: each of its rows runs, on a model that is small."""

import argparse
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.test_memory import Watch
from tools import memory_study

real = SimpleNamespace(
    measure_sensitivity=memory_study.measure_sensitivity,
    Training=memory_study.Training,
    select_mask=memory_study.select_mask,
    zero_grad=torch.optim.AdamW.zero_grad,
)


def test_every_row_runs_on_what_the_ones_before_it_left(tmp_path):
    options = argparse.Namespace(size="tiny", images=2, pixels=32, folder=tmp_path)
    weights = memory_study.make_model(options, tmp_path)
    assert weights > 100_000
    for name, _ in memory_study.ROWS:
        result = memory_study.measure(argparse.Namespace(**vars(options), row=name))
        assert result["bytes"] > 4 * weights
    assert {path.name for path in tmp_path.iterdir()} >= {"signed.safetensors", "0.01.safetensors", "0.1.safetensors"}


@pytest.mark.slow
def test_what_a_weight_takes_is_within_the_budget_and_adamw_is_not(tmp_path, monkeypatch):
    """By the bytes of all tensors while each row works, without the half GiB that is for everything else."""
    options = argparse.Namespace(size="tiny", images=2, pixels=32, folder=tmp_path)
    weights = memory_study.make_model(options, tmp_path)
    assert set(memory_study.BUDGETED) <= {name for name, _ in memory_study.ROWS}
    most: dict[str, int] = {}
    for name in ("full", *memory_study.BUDGETED):
        watch = Watch()
        for worker in ("measure_sensitivity", "Training"):
            monkeypatch.setattr(memory_study, worker, partial(getattr(real, worker), task=watch))
        monkeypatch.setattr(memory_study, "select_mask", watched(watch, real.select_mask))
        monkeypatch.setattr(torch.optim.AdamW, "zero_grad", watched(watch, real.zero_grad))
        memory_study.measure(argparse.Namespace(**vars(options), row=name))
        most[name] = watch.most
    each = memory_study.budget(weights) - memory_study.budget(0)
    assert {name for name in most if 4 * weights < most[name] < each} >= set(memory_study.BUDGETED)
    assert most["full"] > each


def watched(watch: Watch, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        watch.advance()
        return function(*arguments, **named)

    return call


@pytest.mark.parametrize("text", ["", "Name:\tpython\n"])
def test_a_system_that_does_not_tell_is_named(text, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: text)
    with pytest.raises(RuntimeError, match="does not tell VmHWM"):
        memory_study.resident()
