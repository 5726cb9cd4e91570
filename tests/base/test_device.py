"""Where tensors live."""

from typing import Any

import pytest
import torch

from aimfair.base import device as module
from aimfair.base.device import choose_device, tuning_device
from aimfair.base.errors import ConfigError
from aimfair.selective import ops, self_check


def test_auto_takes_the_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=rf"device: found {name}, .* sees 0 GPUs"):
        choose_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(name) == torch.device(name)


def test_tuning_stays_on_the_cpu_without_cuda_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "_has_cuda_kernels", lambda: False)
    assert tuning_device("auto") == tuning_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device: found cuda, .* built without CUDA kernels, .* --device cpu"):
        tuning_device("cuda")
    monkeypatch.setattr(module, "_has_cuda_kernels", lambda: True)
    monkeypatch.setattr(module, "_refuse_wrong_kernels", lambda device: None)
    assert tuning_device("auto") == torch.device("cuda")


def test_a_gpu_on_which_the_kernels_compute_wrongly_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(module, "_has_cuda_kernels", lambda: True)
    module._refuse_wrong_kernels.cache_clear()
    monkeypatch.setattr(self_check, "wrong_kernels", lambda device: ["select", "AdamW, bfloat16"])
    with pytest.raises(ConfigError, match="device: select, AdamW, bfloat16 on cuda differ from their reference"):
        tuning_device("cuda")

    def fails(device: torch.device) -> list[str]:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(self_check, "wrong_kernels", fails)
    with pytest.raises(ConfigError, match="device: the kernels do not run on cuda: no kernel image"):
        tuning_device("cuda")


def test_kernels_are_right_on_the_cpu(monkeypatch):
    assert self_check.wrong_kernels(torch.device("cpu")) == []
    real = ops.planned_sgd_

    def wrong(plan: ops.StepPlan, **settings: Any) -> None:
        real(plan, **settings | {"weight_decay": 0.2})

    monkeypatch.setattr(ops, "planned_sgd_", wrong)
    assert self_check.wrong_kernels(torch.device("cpu")) == ["SGD, float32", "SGD, bfloat16"]
