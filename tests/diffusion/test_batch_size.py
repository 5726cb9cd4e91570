"""The largest batch that is worth its memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER
from aimfair.base.log import NOWHERE, Log
from aimfair.commands import cli
from aimfair.commands.engine import with_batch_size
from aimfair.diffusion import batch_size
from aimfair.diffusion.batch_size import find_batch_size
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "aimfair" / "engines"


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that are tried: speed grows with the logarithm of the size, and 33 images do not fit."""
    sizes: list[int] = []

    def speed_of(self: Diffusion, size: int, text: str) -> float | None:
        sizes.append(size)
        return None if size > 32 else 10.0 + size.bit_length()

    monkeypatch.setattr(Diffusion, "speed_of", speed_of)
    return sizes


def find(model: Path, **changes: Any) -> int:
    settings = GenerateSettings.model_validate({"engine": "eager", "batch_size": "auto", "steps": 2, **changes})
    return find_batch_size(model, settings, CPU, ["one"], NOWHERE, NEVER)


def test_sizes_are_doubled_until_one_does_not_fit(model: Path, tried: list[int]) -> None:
    assert find(model) == 32
    assert tried == [1, 2, 4, 8, 16, 32, 64]


def test_a_larger_batch_must_be_faster(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {1: 10.0, 2: 9.0, 4: 16.0, 8: 16.2, 16: 16.3}  # one that is slower may be chance
    monkeypatch.setattr(Diffusion, "speed_of", lambda _, size, __: speeds[size])
    assert find(model) == 4


def test_a_single_image_must_fit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Diffusion, "speed_of", lambda *_: None)
    with pytest.raises(AimfairError, match=r"generate\.batch_size: a single image does not fit"):
        find(model)


def test_there_is_a_bound(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Diffusion, "speed_of", lambda _, size, __: float(size))
    assert find(model) == batch_size.MOST["cpu"]


def test_it_is_remembered_for_the_same_work(
    model: Path, small: Path, tried: list[int], cache: Path, tmp_path: Path
) -> None:
    assert find(model) == find(model, steps=3, balanced_per_group=7) == 32
    assert len(tried) == 7
    find(model, guidance_scale=0.5)  # Z-Image has guidance from 0 on
    assert len(tried) == 14
    find(model, step_cache="deep")
    assert len(tried) == 21
    decoder = Path(shutil.copytree(small, tmp_path / "decoder"))
    find(model, decoder=str(decoder))
    assert len(tried) == 28
    (decoder / "config.json").write_text((decoder / "config.json").read_text() + "\n")
    assert find(model, decoder=str(decoder)) == find(model, decoder=str(decoder)) == 32
    assert len(tried) == 35
    for file in cache.glob("batch-*.json"):
        assert json.loads(file.read_text())["batch_size"] == 32
        file.write_text("{")
    assert find(model) == 32  # a damaged file is not an answer
    assert len(tried) == 42


def test_the_model_itself_is_tried(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, sizes = Diffusion._sample, []

    def limited(self: Diffusion, texts: Any, seeds: Any) -> Any:
        sizes.append(len(texts))
        if len(texts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, texts, seeds)

    monkeypatch.setattr(Diffusion, "_sample", limited)
    assert find(model, render_size=16) == 1
    assert sizes == [1, 1, 1, 1, 2]


def test_a_model_of_no_known_family_makes_one_image_at_a_time(unknown: Path) -> None:
    told: list[str] = []
    settings = GenerateSettings.model_validate({"engine": "eager", "batch_size": "auto"})
    assert find_batch_size(unknown, settings, CPU, ["one"], Log(None, show=told.append), NEVER) == 1
    assert told == ["batch size: 1, since a StableDiffusionPAGPipeline is of no known family: one image at a time"]


def test_engines_are_built_ahead_for_the_size_that_is_found(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(engine: str, device: str) -> Any:
        settings = GenerateSettings.model_validate({"engine": engine, "batch_size": "auto"})
        return with_batch_size(settings, model, torch.device(device), ["one"], NOWHERE, NEVER).batch_size

    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: 24)
    assert (found("tensorrt-rtx", "cuda"), found("tensorrt", "cuda")) == (24, 24)
    assert found("onnxruntime", "cpu") == "auto"  # it runs any
    words = ("--generate.engine", "tensorrt-rtx", "--generate.batch_size", "auto", "--device", "cpu")
    assert cli.main(["engine", "build", "--config", "demo", *words]) == 2
    assert "generate.batch_size: found auto, expected a number such as 32: tensorrt-rtx" in capsys.readouterr().err


def test_until_it_is_found_the_default_is_meant() -> None:
    assert GenerateSettings(batch_size="auto").images_at_a_time == GenerateSettings().images_at_a_time == 64
    assert GenerateSettings(batch_size=7).images_at_a_time == 7
    with pytest.raises(ValueError, match="batch_size"):
        GenerateSettings(batch_size=0)
