"""Quantised denoisers, in ONNX Runtime and as TensorRT reads them."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.calibration import Recorder, calibration_prompts
from aimfair.diffusion.engines import agreement, onnx_runtime, quantize
from aimfair.diffusion.engines.engine import Source
from aimfair.diffusion.engines.export import path_of
from aimfair.diffusion.engines.registry import engine_facts
from aimfair.diffusion.model import SHIPPED
from aimfair.diffusion.text_to_image import Diffusion, load_source
from aimfair.generation.settings import GenerateSettings

CPU = torch.device("cpu")
TEXTS = [f"a handwritten {digit} in {ink} ink" for digit in ("two", "seven") for ink in ("green", "red")]
SEEDS = list(range(len(TEXTS)))


def load(engine: str, **changes: Any) -> Diffusion:
    settings = GenerateSettings.model_validate({"engine": engine, "steps": 4, **changes})
    return Diffusion(SHIPPED["digits"], settings, CPU, prompts=TEXTS)


@pytest.fixture(scope="module")
def int8(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Diffusion:
    """The shipped model in int8, from a cache of its own."""

    def copy(_: Any, folder: Path, __: Any) -> None:
        shutil.copytree(digits_onnx, folder, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_runtime, "export", copy)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load("onnxruntime", quantization="int8")


@pytest.fixture(scope="module")
def for_tensorrt(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Source, Path]]:
    """The shipped model in int8 or fp8, exported as TensorRT gets it."""

    @functools.cache
    def make(kind: str) -> tuple[Source, Path]:
        shutil.copytree(digits_onnx, folder := tmp_path_factory.mktemp(kind), dirs_exist_ok=True)
        settings = GenerateSettings.model_validate({"engine": "tensorrt-rtx", "steps": 2, "quantization": kind})
        source, _ = load_source(SHIPPED["digits"], settings, CPU, TEXTS)
        quantize.quantize(source, folder, symmetric=True)
        return source, folder

    return make


def test_images_are_close_to_the_plain_model_s(int8: Diffusion) -> None:
    found, expected = int8.sample(TEXTS, SEEDS).images, load("eager").sample(TEXTS, SEEDS).images
    differences = np.abs(found.astype(int) - expected)
    assert 0 < differences.mean() < 4
    assert int8.sample(TEXTS, SEEDS).images.tobytes() == found.tobytes()


def test_images_depend_on_the_version_of_what_rounds() -> None:
    facts = engine_facts("tensorrt-rtx", "int8")
    assert facts is not None
    assert facts == {**(engine_facts("tensorrt-rtx") or {}), "onnxruntime": onnxruntime.__version__}
    assert engine_facts("onnxruntime", "int8") == engine_facts("onnxruntime")  # it is in there


@pytest.mark.parametrize(("kind", "dtype"), [("int8", onnx.TensorProto.INT8), ("fp8", onnx.TensorProto.FLOAT8E4M3FN)])
def test_what_tensorrt_gets(for_tensorrt: Callable[[str], tuple[Source, Path]], kind: str, dtype: int) -> None:
    source, folder = for_tensorrt(kind)
    model = onnx.load(path_of(folder, "denoiser"))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(nodes) > 50
    assert {tensors[node.input[2]].data_type for node in nodes} == {dtype}
    assert all(not any(tensors[node.input[2]].raw_data) for node in nodes)  # symmetric
    agreed = agreement.compare(onnx_runtime.OnnxRuntime(folder, source.parts, CPU), source)  # it can run fp8, slowly
    assert agreed.good
    assert 1e-3 < agreed.differences["denoiser"] < 0.15
    assert agreed.differences["decoder"] < 1e-4


def test_a_wrong_scale_is_found(for_tensorrt: Callable[[str], tuple[Source, Path]], tmp_path: Path) -> None:
    source, folder = for_tensorrt("int8")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = onnx.load(path_of(folder, "denoiser"))
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(20), scale.name))
    onnx.save(model, path_of(tmp_path, "denoiser"))
    agreed = agreement.compare(onnx_runtime.OnnxRuntime(tmp_path, source.parts, CPU), source)
    assert not agreed.good
    assert "3e-01 for the quantised denoiser" in str(agreed)


def test_the_engine_depends_on_kind_prompts_and_sampling() -> None:
    def facts(prompts: list[str] = TEXTS, **settings: Any) -> dict[str, Any]:
        return load_source(SHIPPED["digits"], GenerateSettings(**settings), CPU, prompts)[0].facts()

    assert "quantization" not in facts()
    one, other = facts(quantization="int8"), facts([*TEXTS, "seven"], quantization="int8")
    assert one == facts(quantization="int8") != other
    assert one != facts(quantization="int8", steps=7)
    assert one["quantization"]["kind"] == "int8"


def test_calibration_prompts_are_spread() -> None:
    assert calibration_prompts(TEXTS) == tuple(TEXTS)
    assert calibration_prompts([str(number) for number in range(80)]) == tuple(str(10 * k) for k in range(8))
    with pytest.raises(AimfairError, match=r"generate\.quantization: needs the prompts of a run"):
        calibration_prompts([])


def test_the_recorder_keeps_some_steps_of_the_denoiser() -> None:
    class Nothing:
        def run(self, part: str, inputs: Any) -> Any:
            return inputs

    recorder = Recorder(Nothing())
    for step in range(15):
        recorder.run("denoiser", [torch.tensor([step])])
        recorder.run("decoder", [torch.tensor([-1])])
    assert [int(call[0]) for call in recorder.some()] == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantization": "int8", "engine": "eager"}, "found 'eager', expected tensorrt or tensorrt-rtx or auto"),
        ({"quantization": "fp8", "engine": "onnxruntime"}, "expected tensorrt or tensorrt-rtx with fp8"),
        ({"quantization": "fp8"}, "found 'auto', expected tensorrt or tensorrt-rtx with fp8"),
        ({"quantization": "int8", "engine": "tensorrt", "dtype": "bfloat16"}, "expected float32 or float16 with"),
    ],
)
def test_refusals(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        GenerateSettings.model_validate(settings)
