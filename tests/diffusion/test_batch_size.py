"""The largest batch that is worth its memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER
from aimfair.base.log import NOWHERE
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


def test_it_is_remembered_for_the_same_work(model: Path, tried: list[int], cache: Path) -> None:
    assert find(model) == find(model, steps=3, balanced_per_group=7) == 32
    assert len(tried) == 7
    find(model, guidance_scale=1.0)
    assert len(tried) == 14
    for file in cache.glob("batch-*.json"):
        assert json.loads(file.read_text())["batch_size"] == 32
        file.write_text("{")
    assert find(model) == 32  # a damaged file is not an answer
    assert len(tried) == 21


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


def test_until_it_is_found_the_default_is_meant() -> None:
    assert GenerateSettings(batch_size="auto").images_at_a_time == GenerateSettings().images_at_a_time == 64
    assert GenerateSettings(batch_size=7).images_at_a_time == 7
    with pytest.raises(ValueError, match="batch_size"):
        GenerateSettings(batch_size=0)
