"""Where tensors live."""

import pytest
import torch

from aimfair import device as module
from aimfair.device import choose_device, tuning_device
from aimfair.errors import ConfigError


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
    assert tuning_device("auto") == torch.device("cuda")
