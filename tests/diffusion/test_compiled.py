"""torch.compile as an engine. Tracing and Inductor take a minute: but for the slow tests, the modules themselves stand
in for what they make."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.commands import cli
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import SIZE

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch"),
]

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a one in green, thin", "a two in red", "seven", "one", "two"], [1, 2, 3, 4, 5]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of batches that came to what was compiled, from now on the module itself."""
    sizes: list[int] = []

    def stand_in(module: Any, *, fullgraph: bool, dynamic: bool, mode: str | None) -> Any:
        assert (fullgraph, dynamic, mode) == (True, False, None)

        def run(*inputs: torch.Tensor) -> Any:
            sizes.append(len(inputs[0]))
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    return sizes


def load(model: Path, engine: str = "compile", log: Log | None = None, **changes: Any) -> Diffusion:
    settings = GenerateSettings(**{"steps": 3, "render_size": SIZE, "engine": engine, **changes})
    return Diffusion(model, settings, CPU, **({} if log is None else {"log": log}))


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


def test_images_are_eager_s_and_each_size_is_compiled_once_and_logged(
    model: Path, compiled: list[int], tmp_path: Path
) -> None:
    diffusion = load(model, log=(log := Log(tmp_path / "log.jsonl")))
    expected = load(model, "eager").sample(TEXTS, SEEDS).images
    for few in (5, 3, 4, 2):
        assert levels(diffusion.sample(TEXTS[:few], SEEDS[:few]).images, expected[:few]) <= 1
    # Twice the images with guidance, then the decoder; more than half of what is there is filled up to it.
    assert compiled == [10, 10, 10, 5] * 3 + [4, 4, 4, 2]
    log.close()
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [(event["part"], event["batch"]) for event in events if event["event"] == "compiled"]
    assert found == [("denoiser", 10), ("decoder", 5), ("denoiser", 4), ("decoder", 2)]
    assert all(event["difference"] <= 1e-4 and event["seconds"] >= 0 for event in events)


def test_a_graph_that_differs_is_not_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: Any, **_: Any) -> Any:
        return lambda *inputs: tuple(output + 0.01 for output in module(*inputs))

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(AimfairError, match=r"compile is not to be trusted with generate\.model: denoiser: .*at most"):
        load(model).sample(TEXTS, SEEDS)


def test_without_a_compiler(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("backend='inductor' raised:\nno compiler found\nhere")

    monkeypatch.setattr(torch, "compile", lambda module, **_: fail)
    with pytest.raises(AimfairError, match=r"cannot be compiled: denoiser: no compiler found; torch") as error:
        load(model).sample(TEXTS, SEEDS)
    assert "\n" not in str(error.value)


def test_full_memory_halves_the_batch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def limited(module: Any, **_: Any) -> Any:
        def run(*inputs: torch.Tensor) -> Any:
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", limited)
    images = load(model, batch_size=4).sample(TEXTS[:4], SEEDS[:4]).images
    assert levels(images, load(model, "eager").sample(TEXTS[:4], SEEDS[:4]).images) <= 1
    assert (sizes[0], max(sizes[1:])) == (8, 4)


def test_regions_compile_the_repeated_blocks(model: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: found.append((type(self).__name__, how)))
    images = load(model, compile_regions=True).sample(TEXTS, SEEDS).images
    assert found == [("BasicTransformerBlock", {"fullgraph": True, "dynamic": False})] * 4
    assert compiled == [5]  # the decoder as a whole
    assert levels(images, load(model, "eager").sample(TEXTS, SEEDS).images) <= 1


def test_a_denoiser_without_repeated_blocks(models: dict[str, Path], compiled: list[int]) -> None:
    with pytest.raises(AimfairError, match=r"compile_regions: found true, expected false: .* no repeated blocks"):
        load(models["sd3"], compile_regions=True)


def test_torch_tensorrt_is_refused_where_it_cannot_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(AimfairError, match=r"generate\.engine torch-tensorrt.*pip install"):
        load(model, "torch-tensorrt")
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    with pytest.raises(AimfairError, match="torch-tensorrt runs on an NVIDIA GPU, found device cpu"):
        load(model, "torch-tensorrt")


def test_nothing_is_built_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", "build", "--config", "demo", "--generate.engine", "compile"]) == 2
    assert "compile is built in each run" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["build", "check"])
def test_imported_images_need_no_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path, action: str) -> None:
    assert cli.main(["engine", action, "--config", "demo", "--generate.folder", str(tmp_path)]) == 2
    assert "generate.folder: takes the place of a text-to-image model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "sd3", "flux"])
def test_by_inductor(models: dict[str, Path], name: str) -> None:
    images = load(models[name]).sample(TEXTS, SEEDS).images
    assert levels(images, load(models[name], "eager").sample(TEXTS, SEEDS).images) <= 1
