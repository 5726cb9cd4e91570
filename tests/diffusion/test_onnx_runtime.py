"""The shipped model in ONNX Runtime. It is exported once, for all tests in this file."""

import functools
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.commands import cli
from aimfair.config import Config
from aimfair.diffusion.engines import agreement, export, onnx_runtime, store
from aimfair.diffusion.engines.engine import Eager, Part, Source, Tensors
from aimfair.diffusion.model import SHIPPED
from aimfair.diffusion.text_to_image import Diffusion, engine_and_source
from aimfair.generation.settings import GenerateSettings
from aimfair.run.directory import Run
from aimfair.stages import generate, prompts

CPU = torch.device("cpu")
TEXTS = [f"a handwritten {digit} in {ink} ink" for digit in ("two", "seven", "nine") for ink in ("green", "red")]
SEEDS = list(range(len(TEXTS)))


@pytest.fixture(scope="module")
def cache_home(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def copy(_: Any, folder: Path, __: Any) -> None:
        shutil.copytree(digits_onnx, folder, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_runtime, "export", copy)
        patch.setenv("XDG_CACHE_HOME", str(home := tmp_path_factory.mktemp("cache")))
        load(engine="onnxruntime")
    return home


@pytest.fixture(autouse=True)
def built(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on whatever exports has lost its cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    monkeypatch.setattr(onnx_runtime, "export", lambda *_: pytest.fail("exported again"))


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(onnx_runtime, "export", export.export)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@functools.cache
def shared() -> Diffusion:
    """One for all tests that change nothing in it."""
    return load(engine="onnxruntime")


@functools.cache
def engine_with(threads: int) -> tuple[Any, Source]:
    """Engine and source, as :func:`shared`; ``threads``: those of torch, which its sessions get."""
    assert threads == torch.get_num_threads()
    return engine_and_source(SHIPPED["digits"], GenerateSettings(engine="onnxruntime"), CPU)


def load(**settings: Any) -> Diffusion:
    return Diffusion(SHIPPED["digits"], GenerateSettings(**{"engine": "eager", "steps": 4, **settings}), CPU)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize(
    "settings", [{}, {"guidance_scale": 1.0, "scheduler": "dpmpp_2m"}, {"scheduler": "unipc"}], ids=str
)
def test_images_are_eager_s(settings: dict[str, Any]) -> None:
    images, finite = load(engine="onnxruntime", **settings).sample(TEXTS, SEEDS)
    assert finite.all()
    assert all(image.std() > 10 for image in images)
    assert levels(images, load(**settings).sample(TEXTS, SEEDS).images) <= 1


def test_an_image_does_not_depend_on_its_batch() -> None:
    diffusion = shared()
    together = diffusion.sample(TEXTS, SEEDS).images
    assert np.array_equal(together, diffusion.sample(TEXTS, SEEDS).images)
    for k in (3, 0):
        assert levels(together[k], diffusion.sample([TEXTS[k]], [SEEDS[k]]).images[0]) <= 1


def test_the_unet_s_weights_are_not_kept() -> None:
    assert list(shared()._pipeline.unet.parameters()) == []


def test_sessions_have_torch_s_threads_and_do_not_spin(threads: Callable[[int], None]) -> None:
    threads(2)
    engine = load(engine="onnxruntime")._engine
    assert isinstance(engine, onnx_runtime.OnnxRuntime)
    for part, count in (("denoiser", 1), ("decoder", 1), ("text_encoder", 2)):
        options = engine._sessions[part].get_session_options()
        assert options.intra_op_num_threads == count
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert engine._sessions[part].get_providers() == ["CPUExecutionProvider"]


def test_large_images_go_one_by_one(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    """They keep all threads busy, and a batch of them would fill the memory."""
    part = Part("denoiser", torch.nn.Identity(), {"sample": Tensors((4, 8, 8), torch.float32)}, {})
    for latents, images in (((4, 8, 8), 16), ((4, 16, 16), 4), ((4, 31, 31), 1), ((4, 64, 64), 1), ((256, 64), 1)):
        inputs = {"sample": Tensors(latents, torch.float32)}
        assert onnx_runtime._piece(replace(part, inputs=inputs)) == images
    monkeypatch.setattr(onnx_runtime, "_POSITIONS", 64)
    threads(2)
    engine, source = engine_and_source(SHIPPED["digits"], GenerateSettings(engine="onnxruntime"), CPU)
    assert isinstance(engine, onnx_runtime.OnnxRuntime)
    assert engine._sessions["denoiser"].get_session_options().intra_op_num_threads == 2
    sizes, right = [], engine._run

    def run(session: Any, inputs: Any, outputs: Any) -> None:
        sizes.append(len(inputs["sample"]))
        right(session, inputs, outputs)

    monkeypatch.setattr(engine, "_run", run)
    denoiser = next(part for part in source.parts if part.name == "denoiser")
    inputs = [agreement.example(tensors, 3, torch.Generator()) for tensors in denoiser.inputs.values()]
    with torch.inference_mode():
        (found,), (expected,) = (one.run("denoiser", inputs) for one in (engine, Eager(source)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sizes == [1, 1, 1]


def test_guidance_in_some_of_the_steps() -> None:
    settings = {"guidance_interval": (0.25, 0.75), "guidance_scale": 5.0}
    images = load(engine="onnxruntime", **settings).sample(TEXTS, SEEDS).images
    assert levels(images, load(**settings).sample(TEXTS, SEEDS).images) <= 1
    assert levels(images, load(guidance_scale=5.0).sample(TEXTS, SEEDS).images) > 1


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 37])
def test_pieces_of_a_batch_are_put_together(count: int, batch: int, threads: Callable[[int], None]) -> None:
    threads(count)
    engine, source = engine_with(count)
    generator = torch.Generator().manual_seed(batch)
    denoiser = next(part for part in source.parts if part.name == "denoiser")
    inputs = [agreement.example(tensors, batch, generator) for tensors in denoiser.inputs.values()]
    with torch.inference_mode():
        (found,), (expected,) = (one.run("denoiser", inputs) for one in (engine, Eager(source)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "count"), [(2, 2), (3, 2), (128, 2), (33, 2), (128, 16), (17, 16), (5, 4)])
def test_pieces_are_small_and_keep_every_thread_busy(batch: int, count: int) -> None:
    pieces = onnx_runtime._cuts(batch, 16, count)
    sizes = [len(range(batch)[piece]) for piece in pieces]
    assert [k for piece in pieces for k in range(batch)[piece]] == list(range(batch))
    assert len(pieces) % count == 0
    assert max(sizes) <= 16
    assert max(sizes) - min(sizes) <= 1


def test_inputs_that_are_not_contiguous() -> None:
    engine, source = engine_with(torch.get_num_threads())
    latents = torch.randn(4, 8, 8, 4).permute(0, 3, 2, 1)
    assert source.parts[1].inputs["latents"].shape == latents.shape[1:]
    (found,), (expected,) = (engine.run("decoder", [values]) for values in (latents, latents.contiguous()))
    assert torch.equal(found, expected)


def test_full_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    threads(2)
    diffusion = load(engine="onnxruntime", batch_size=4)
    expected = diffusion.sample(TEXTS[:4], SEEDS[:4]).images
    engine, sizes = diffusion._engine, []
    assert isinstance(engine, onnx_runtime.OnnxRuntime)

    right = engine._run

    def full(session: Any, inputs: Any, outputs: Any) -> None:
        sizes.append(len(inputs["sample"]) if "sample" in inputs else 0)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("Failed to allocate memory")
        right(session, inputs, outputs)

    monkeypatch.setattr(engine, "_run", full)
    assert levels(diffusion.sample(TEXTS[:4], SEEDS[:4]).images, expected) <= 1
    assert set(sizes) == {4, 2, 0}


def test_full_memory_is_known_by_its_message(threads: Callable[[int], None]) -> None:
    class Full:
        def io_binding(self) -> Any:
            return self

        def bind_input(self, *_: Any) -> None: ...

        bind_output = bind_input

        def run_with_iobinding(self, _: Any) -> None:
            raise RuntimeError(message)

    threads(2)
    engine, source = engine_and_source(SHIPPED["digits"], GenerateSettings(engine="onnxruntime"), CPU)
    assert isinstance(engine, onnx_runtime.OnnxRuntime)
    engine._sessions["decoder"] = Full()
    latents = torch.zeros(2, *source.parts[1].inputs["latents"].shape)
    for message, error in (
        ("Failed to allocate memory for requested buffer of size 4096", torch.OutOfMemoryError),
        ("Invalid argument", RuntimeError),
    ):
        with pytest.raises(error, match=message):
            engine.run("decoder", [latents])


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AimfairError, match=r"onnxruntime is not installed; .* pip install onnx onnxscript onnxruntime"):
        load(engine="onnxruntime")


@pytest.mark.usefixtures("no_cache")
def test_exporting_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "exporters", lambda: {"onnx": "1.20"})
    with pytest.raises(AimfairError, match=r"onnxscript not installed; .*pip install onnxscript"):
        load(engine="onnxruntime")


def test_running_without_the_packages_of_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "exporters", dict)
    assert load(engine="onnxruntime").sample(TEXTS[:1], SEEDS[:1]).finite.all()


@pytest.mark.usefixtures("no_cache")
def test_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no decomposition\nof this")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(AimfairError, match=r"denoiser: no decomposition; use --generate\.engine eager, or") as error:
        load(engine="onnxruntime")
    assert "\n" not in str(error.value)
    assert list(store.entries()) == []


@pytest.mark.usefixtures("no_cache")
def test_an_engine_that_differs_is_not_used(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place,) = (path for path in (cache_home / "aimfair" / "engines").iterdir() if path.is_dir())

    def copy(source: Any, folder: Path, _: Any) -> None:
        shutil.copytree(place, folder, dirs_exist_ok=True)
        source.parts[1].module.vae.decoder.conv_out.bias.data[1] += 0.01  # now the files are those of another model

    monkeypatch.setattr(onnx_runtime, "export", copy)
    with pytest.raises(AimfairError, match=r"onnxruntime is not to be trusted with generate\.model: largest relative"):
        load(engine="onnxruntime")
    assert list(store.entries()) == []


def test_a_gpu_that_the_package_cannot_use(cache_home: Path) -> None:
    (place,) = (path for path in (cache_home / "aimfair" / "engines").iterdir() if path.is_dir())
    if "CUDAExecutionProvider" in onnx_runtime._library().get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(AimfairError, match=r"has no CUDAExecutionProvider; use --device cpu, or: .*onnxruntime-gpu"):
        onnx_runtime.OnnxRuntime(place, (), torch.device("cuda"))


def test_sizes_that_the_model_cannot_make_are_refused_before_anything_is_exported() -> None:
    with pytest.raises(AimfairError, match=r"generate\.render_size: found 36, expected a multiple of 8"):
        load(engine="onnxruntime", render_size=36)


def test_bfloat16_is_refused_as_a_setting() -> None:
    with pytest.raises(ValueError, match="expected float32 or float16 with engine onnxruntime"):
        GenerateSettings(engine="onnxruntime", dtype="bfloat16")


def test_what_the_engine_does_not_take_is_refused() -> None:
    unet = shared()._pipeline.unet
    with pytest.raises(AimfairError, match=r"needs timestep_cond, which only --generate\.engine eager takes"):
        unet(torch.zeros(1), torch.zeros(()), torch.zeros(1), timestep_cond=torch.zeros(1), return_dict=False)


# -- in a run ----------------------------------------------------------------------------------------------------------


def config(**changes: Any) -> Config:
    return Config.model_validate(
        {
            "device": "cpu",
            "data": {"image_size": 32, "minority_ratio": 0.5},
            "prompts": {
                "per_group": 2,
                "template": "a handwritten {target} in {protected} ink",
                "targets": [["zero", "one"], ["five", "six"]],
                "protected": [["green"], ["red"]],
                "contexts": {},
                "contexts_per_prompt": 0,
            },
            "generate": {
                "engine": "onnxruntime",
                "steps": 2,
                "batch_size": 4,
                "balanced_per_group": 2,
                "biased_total": 6,
                **changes,
            },
            "model": {"config": {"model_type": "resnet"}},
            "methods": {"full": {"rule": "all"}},
            "default_method": "full",
        }
    )


def stages(path: Path, settings: Config, *, overwrite: bool = False) -> None:
    with Run.open(path, settings, overwrite=overwrite, quiet=True) as run:
        prompts.run(run)
        generate.run(run)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_that_was_stopped_ends_with_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages(tmp_path / "whole", config())
    calls, original = 0, Diffusion.sample

    def interrupted(self: Diffusion, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(Diffusion, "sample", interrupted)
    with pytest.raises(Interrupted):
        stages(tmp_path / "cut", config())
    assert len(list((tmp_path / "cut" / "synthetic" / "images").iterdir())) == 8
    stages(tmp_path / "cut", config())
    assert contents(tmp_path / "cut" / "synthetic") == contents(tmp_path / "whole" / "synthetic")


def test_another_engine_or_version_asks_for_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages(tmp_path, config(engine="eager"))
    recipe = json.loads((tmp_path / "synthetic" / "job.json").read_text())
    assert "engine" not in {*recipe, *recipe["generate"]}  # as before there were engines
    with pytest.raises(AimfairError, match=r"generate\.engine.*--overwrite"):
        stages(tmp_path, config())
    stages(tmp_path, config(), overwrite=True)
    found = onnx_runtime.versions()
    assert json.loads((tmp_path / "synthetic" / "job.json").read_text())["engine"] == {"name": "onnxruntime", **found}
    before = contents(tmp_path / "synthetic")

    monkeypatch.setattr(onnx_runtime, "versions", lambda: {**found, "onnxruntime": "0.9"})
    stages(tmp_path, config())  # nothing is missing: they stay as they are
    stages(tmp_path, config(engine="auto"), overwrite=True)  # the settings are others, the engine is that of the images
    assert contents(tmp_path / "synthetic") == before

    (tmp_path / "stages" / "generate.json").unlink()
    with pytest.raises(AimfairError, match=r"made with engine onnxruntime onnxruntime .*onnxruntime 0\.9.*--overwrite"):
        stages(tmp_path, config(engine="auto"))
    assert contents(tmp_path / "synthetic") == before


# -- the verb ----------------------------------------------------------------------------------------------------------


def verb(*words: str) -> int:
    return cli.main(["engine", *words])


ONNX = ("--config", "demo", "--generate.engine", "onnxruntime")


def test_build_list_and_check(cache_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("build", *ONNX) == 0
    assert "onnxruntime of" in (out := capsys.readouterr().out)
    assert out.rstrip().endswith(str(cache_home / "aimfair" / "engines"))
    assert verb("check", *ONNX) == 0
    assert "largest relative difference from eager" in (out := capsys.readouterr().out)
    assert "at most 1e-04" in out
    assert verb("list") == 0
    assert "dtype float32, device cpu, aimfair " in (out := capsys.readouterr().out)
    assert ", onnxruntime 1" in out
    assert (
        "denoiser: sample float32[B, 4, 8, 8], timestep float32[B], embeddings float32[B, 24, 64] -> predicted"
        " float32[B, 4, 8, 8]\n"
    ) in out


def test_check_fails_when_they_differ(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = onnx_runtime.OnnxRuntime.run

    def wrong(self: onnx_runtime.OnnxRuntime, part: str, inputs: Any) -> Any:
        return tuple(output + 0.01 for output in right(self, part, inputs))

    monkeypatch.setattr(onnx_runtime.OnnxRuntime, "run", wrong)
    assert verb("check", *ONNX) == 1
    captured = capsys.readouterr()
    assert "decoder" in captured.out
    assert "onnxruntime differs from eager; use --generate.engine eager" in captured.err


def test_what_the_verb_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("list", "--generate.engine", "onnxruntime") == 2
    assert "engine list takes no settings" in capsys.readouterr().err
    assert verb("build", "--config", "demo", "--generate.engine", "eager") == 2
    assert "found eager (it is set), which needs no building" in capsys.readouterr().err
    assert verb("build", "--config", "demo", "--generate.dtype", "bfloat16") == 2
    assert "found eager (onnxruntime is slow in bfloat16 on a CPU), which" in capsys.readouterr().err
    assert verb("build", "--config", "demo", "--generate.engine", "compile") == 2
    assert "compile is built in each run" in capsys.readouterr().err
