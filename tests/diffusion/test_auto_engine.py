"""Which engine ``auto`` is."""

from typing import Any

import pytest
import torch

from aimfair.diffusion.engines import registry
from aimfair.generation.settings import GenerateSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


def choose(device: torch.device = CPU, made_with: str | None = None, **settings: Any) -> registry.Choice:
    return registry.choose_engine(GenerateSettings(**{"engine": "auto", **settings}), lambda: device, made_with)


def test_on_a_cpu() -> None:
    assert choose().engine == "onnxruntime"
    assert choose(dtype="bfloat16") == ("eager", "onnxruntime is slow in bfloat16 on a CPU")


def test_on_a_gpu_nothing_is_built_unasked() -> None:
    engine, reason = choose(GPU)
    assert engine == "eager"
    assert "--generate.engine tensorrt" in reason


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert choose() == ("eager", "not installed: onnxscript; with them onnxruntime is faster on a CPU")


def test_images_that_are_there_decide() -> None:
    def unasked() -> torch.device:
        raise AssertionError

    settings = GenerateSettings(engine="auto")
    assert registry.choose_engine(settings, unasked, "eager") == ("eager", "it made the existing images")


@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
def test_what_was_asked_for_is_taken_whatever_is_there(engine: str) -> None:
    assert choose(GPU, "eager", engine=engine) == (engine, "it is set")
