"""Plans of TensorRT, built for real with tensorrt-rtx, which needs no GPU for that."""

import gc
import json
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx
import torch
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted
from aimfair.base.log import NOWHERE, Log
from aimfair.commands import cli
from aimfair.diffusion.engines import store, tensorrt, tensorrt_build
from aimfair.diffusion.engines.agreement import Agreement
from aimfair.diffusion.engines.engine import Part, Source, Tensors
from aimfair.diffusion.engines.tensorrt import Maker
from aimfair.diffusion.engines.tensorrt_build import Library, Messages, Plan, build, load_library
from aimfair.diffusion.engines.tensorrt_run import PlanRefused
from aimfair.diffusion.settings import TensorRtSettings
from aimfair.diffusion.text_to_image import load_source
from aimfair.generation.settings import GenerateSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BATCHES = {"denoiser": 4, "decoder": 1, "text_encoder": 1}
PLANS = {f"{part}.plan" for part in BATCHES}
GOOD = Agreement(differences={"denoiser": 1e-3, "decoder": 1e-3}, tolerance=3e-2)
STATIC = Plan(batch=4, smallest=4, workspace=None, optimization_level=3, targets=(86,))


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "aimfair" / "engines"


# -- one graph ---------------------------------------------------------------------------------------------------------

PART = Part("part", nn.Identity(), {"x": Tensors((3, 4), torch.float32)}, {"y": Tensors((3, 4), torch.float32)})


def graph(path: Path, operator: str = "Relu", inputs: tuple[str, ...] = ("x",)) -> Path:
    """An ONNX file with one node, x [batch, 3, 4] -> y."""
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4]) for name in (*inputs, "y")]
    node = helper.make_node(operator, list(inputs), ["y"], name="the_node")
    made = helper.make_graph([node], "graph", values[:-1], values[-1:])
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run_build(
    library: Library, onnx: Path, *, plan: Plan = STATIC, log: Log = NOWHERE, interrupt: Interrupt = NEVER
) -> Path:
    path = onnx.with_suffix(".plan")
    build(library, onnx, path, PART, plan, None, log, interrupt)
    return path


def test_a_plan_and_what_the_log_says_of_it(library: Library, tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    path = run_build(library, graph(tmp_path / "graph.onnx"), log=log)
    log.close()
    version = bytes(int(number) for number in library.version.split("."))
    assert version in path.read_bytes()[:64]
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (built,) = [event for event in events if event["event"] == "engine built"]
    assert (built["part"], built["bytes"]) == ("part", path.stat().st_size)
    phases = [event["phase"] for event in events if event["event"] == "engine phase"]
    assert len(phases) == len(set(phases)) > 2


@pytest.mark.parametrize("smallest", [1, 4])
def test_batches_of_a_profile(library: Library, smallest: int) -> None:
    builder = library.api.Builder(Messages(library).logger)
    profile = tensorrt_build._profile(builder, PART, replace(STATIC, smallest=smallest))
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(smallest, 3, 4), (4, 3, 4), (4, 3, 4)]


def with_builder(library: Library, work: Callable[..., Any]) -> Library:
    """The package with a builder that does ``work(builder, network, config)``, given the real one, when it builds."""

    class Builder:
        def __init__(self, logger: Any):
            self.logger, self._real = logger, library.api.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            return work(self._real, network, config)

    return Library(library.name, SimpleNamespace(**{**vars(library.api), "Builder": Builder}))


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_while_the_library_may_log(library: Library, tmp_path: Path, fails: bool) -> None:
    """It would end the builder of a failed build, which waits for the lock that is held while logging."""
    enabled = []

    def spy(builder: Any, network: Any, config: Any) -> Any:
        enabled.append(gc.isenabled())
        return None if fails else builder.build_serialized_network(network, config)

    with pytest.raises(AimfairError) if fails else nullcontext():
        run_build(with_builder(library, spy), graph(tmp_path / "graph.onnx"))
    assert (enabled, gc.isenabled()) == ([False], True)


def test_what_the_builder_is_told(library: Library, tmp_path: Path) -> None:
    """No TF32, the limits and the architectures of the plan."""
    told = []

    def spy(builder: Any, network: Any, config: Any) -> Any:
        told.append(config.get_flag(library.api.BuilderFlag.TF32))
        told.append(config.get_memory_pool_limit(library.api.MemoryPoolType.WORKSPACE))
        told.append(config.builder_optimization_level)
        count = config.num_compute_capabilities
        told.append([config.get_compute_capability(index).name for index in range(count)])
        return builder.build_serialized_network(network, config)

    plan = replace(STATIC, workspace=2**28, optimization_level=1, targets=(75, 120))
    run_build(with_builder(library, spy), graph(tmp_path / "graph.onnx"), plan=plan)
    assert told == [False, 2**28, 1, ["SM75", "SM120"]]


def test_a_node_that_the_library_does_not_know(library: Library, tmp_path: Path) -> None:
    onnx = graph(tmp_path / "graph.onnx", "StringConcat")
    with pytest.raises(
        AimfairError, match=r"cannot read part: node the_node \(StringConcat\): .*--generate\.engine onnx"
    ) as error:
        run_build(library, onnx)
    assert "\n" not in str(error.value)
    assert not onnx.with_suffix(".plan").exists()


def test_a_file_that_is_no_graph(library: Library, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(AimfairError, match=r"tensorrt-rtx [\d.]+ cannot read part: .*; try another generate\.dtype"):
        run_build(library, tmp_path / "graph.onnx")


def test_a_graph_with_other_inputs(library: Library, tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"part has the inputs x, z in graph\.onnx, expected x; use"):
        run_build(library, graph(tmp_path / "graph.onnx", "Add", ("x", "z")))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Error Code 2: OutOfMemory (Requested size was\n 5 bytes)", r"batches of 4: out of memory: .*workspace_gb"),
        ("(cudaError 2)", "lower --generate.batch_size"),
        ("Error Code 10: Could not find any implementation for node {conv}", r"\{conv\}; try another generate\.dtype"),
    ],
)
def test_a_builder_that_fails(library: Library, tmp_path: Path, said: str, told: str) -> None:
    def fail(builder: Any, network: Any, config: Any) -> None:
        builder.logger.log(library.api.ILogger.Severity.ERROR, said)

    with pytest.raises(AimfairError, match=told) as error:
        run_build(with_builder(library, fail), graph(tmp_path / "graph.onnx"))
    assert "\n" not in str(error.value)


def test_memory_of_the_host_that_is_full(library: Library, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    with pytest.raises(AimfairError, match="cannot build part for batches of 4: out of memory"):
        run_build(with_builder(library, fail), graph(tmp_path / "graph.onnx"))


class AskedAfter(Interrupt):
    """A signal comes when it is asked for the n-th time whether one has."""

    def __init__(self, questions: int, raised: BaseException | None = None):
        super().__init__()
        self.questions, self.raised = questions, raised

    @property
    def requested(self) -> bool:
        self.questions -= 1
        if self.questions == 0:
            self._signal = signal.SIGINT
            if self.raised is not None:
                raise self.raised
        return self._signal is not None


def test_ctrl_c_ends_a_build(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_build(library, graph(tmp_path / "graph.onnx"), interrupt=(interrupt := AskedAfter(2)))
    assert interrupt.questions == 0  # and was not asked again
    assert not (tmp_path / "graph.plan").exists()


def test_a_second_ctrl_c_ends_it_too(library: Library, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_build(library, graph(tmp_path / "graph.onnx"), interrupt=AskedAfter(2, KeyboardInterrupt()))
    assert not (tmp_path / "graph.plan").exists()


# -- models ------------------------------------------------------------------------------------------------------------


def copying(graphs: Path) -> Callable[..., None]:
    """In the place of an export, which takes ten times as long as the build."""
    return lambda source, folder, interrupt: shutil.copytree(graphs, folder, dirs_exist_ok=True)


def small(model: Path, interrupt: Interrupt = NEVER, device: torch.device = CPU, **settings: Any) -> Maker:
    source, _ = load_source(model, GenerateSettings(dtype="float16"), CPU)
    targets = {} if device == GPU else {"targets": [86]}
    return Maker(
        "tensorrt-rtx",
        replace(source, device=device),
        TensorRtSettings(**{**targets, **settings}),
        BATCHES,
        interrupt=interrupt,
    )


def only_entry() -> tuple[Path, store.Entry]:
    ((place, entry),) = store.entries()
    assert isinstance(entry, store.Entry), entry
    return place, entry


@pytest.fixture
def cached(model: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, with the engine of a small Stable Diffusion in half precision; its plans are not real ones.

    From then on an export fails the test.
    """
    with monkeypatch.context() as patch:
        patch.setattr(tensorrt, "export", lambda *_: None)
        patch.setattr(tensorrt, "build", lambda library, onnx, path, *_: path.write_bytes(bytes(2000)))
        assert small(model).prepare() is None
    monkeypatch.setattr(tensorrt, "export", lambda *_: pytest.fail("exported again"))
    return cache_home


@pytest.mark.usefixtures("cached")
def test_what_is_kept_of_an_engine(model: Path) -> None:
    place, entry = only_entry()
    assert set(entry.files) == PLANS  # and nothing of the export
    assert {path.name for path in place.iterdir()} == {*entry.files, "entry.json"}
    assert entry.agreement is None
    expected = {
        "engine": "tensorrt-rtx",
        "tensorrt-rtx": tensorrt_rtx.__version__,
        "dtype": "float16",
        "device": "cuda",
        "opset": 20,
        "profile": "static",
        "batches": BATCHES,
        "architectures": [86],
    }
    assert {name: entry.facts[name] for name in expected} == expected
    assert small(model).prepare() is None  # from the cache
    assert small(model, cuda_graphs=False).prepare() is None


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(
    "settings", [{"profile": "dynamic"}, {"targets": [86, 89]}, {"workspace_gb": 1}, {"optimization_level": 2}], ids=str
)
def test_other_settings_are_another_engine(model: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match="exported again"):
        small(model, **settings).prepare()


@pytest.mark.slow
def test_a_dynamic_engine_for_all_that_the_package_knows(
    model: Path, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "export", copying(small_onnx))
    plans = []

    def only_decoder(library: Library, onnx: Path, path: Path, part: Part, plan: Plan, *others: Any) -> None:
        plans.append(plan)
        if part.name == "decoder":
            build(library, onnx, path, part, plan, *others)

    monkeypatch.setattr(tensorrt, "build", only_decoder)
    small(model, profile="dynamic", targets=None).prepare()
    _, entry = only_entry()
    assert entry.facts["architectures"] == [75, 80, 86, 89, 120, 121]
    assert [(plan.smallest, plan.batch, plan.targets) for plan in plans] == [
        (1, 4, (75, 80, 86, 89, 120, 121)),
        (1, 1, (75, 80, 86, 89, 120, 121)),
        (1, 1, (75, 80, 86, 89, 120, 121)),
    ]
    assert set(entry.files) == {"decoder.plan"}


@pytest.mark.slow
def test_an_interrupted_build_leaves_nothing(
    model: Path, small_onnx: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "export", copying(small_onnx))
    with pytest.raises(Interrupted):
        small(model, AskedAfter(100)).prepare()
    assert [path.suffix for path in cache_home.iterdir()] == [".lock"]


def test_a_damaged_plan_is_not_used(model: Path, cached: Path) -> None:
    place, _ = only_entry()
    data = bytearray((place / "denoiser.plan").read_bytes())
    data[1000] ^= 1
    (place / "denoiser.plan").write_bytes(data)
    with (
        pytest.warns(UserWarning, match=r"denoiser\.plan is damaged; building it again"),
        pytest.raises(pytest.fail.Exception, match="exported again"),
    ):
        small(model).prepare()


@pytest.mark.slow
def test_the_shipped_model_by_the_verb(
    digits_onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt, "export", copying(digits_onnx))
    words = ("--config", "demo", "--generate.engine", "tensorrt-rtx", "--generate.tensorrt.targets", "[89]")
    assert cli.main(["engine", "build", *words, "--device", "cpu"]) == 0
    assert "digits-diffusion: built; its first run on a GPU compares it with eager, in" in capsys.readouterr().out
    _, entry = only_entry()
    assert entry.facts["batches"] == {"denoiser": 128, "decoder": 64, "text_encoder": 1}
    assert set(entry.files) == PLANS
    assert cli.main(["engine", "list"]) == 0
    out = capsys.readouterr().out
    assert "tensorrt-rtx of" in out
    assert "architectures [89]" in out
    assert "not yet compared with eager" in out
    assert cli.main(["engine", "check", *words, "--device", "cpu"]) == 1
    assert "tensorrt-rtx runs on an NVIDIA GPU, found device cpu" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_small_stable_diffusion(model: Path, dtype: str) -> None:
    settings = GenerateSettings(dtype=dtype, batch_size=2)
    source, batches = load_source(model, settings, CPU)
    maker = Maker("tensorrt-rtx", source, TensorRtSettings(targets=[86]), batches)
    assert maker.prepare() is None
    assert set(only_entry()[1].files) == PLANS


@pytest.mark.slow
def test_a_unet_as_large_as_stable_diffusion_2_1_s() -> None:
    """866 million weights, half precision."""
    import diffusers

    from aimfair.diffusion.families.stable_diffusion import Denoiser

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
    unet = unet.to(torch.float16).to_empty(device="cpu").eval()
    for weights in unet.parameters():
        nn.init.normal_(weights, std=0.02)
    assert sum(weights.numel() for weights in unet.parameters()) > 860e6
    latents = Tensors((4, 64, 64), torch.float16)
    part = Part(
        "denoiser",
        Denoiser(unet),
        {
            "sample": latents,
            "timestep": Tensors((), torch.float32, below=1000),
            "embeddings": Tensors((77, 1024), torch.float16),
        },
        {"predicted": latents},
    )

    class Unsaved(Source):
        def facts(self) -> dict[str, Any]:
            return {"model": "random", "parts": {}}

    source = Unsaved(Path("random"), (part,), torch.float16, CPU)
    Maker("tensorrt-rtx", source, TensorRtSettings(targets=[89]), {"denoiser": 2}).prepare()
    place, _ = only_entry()
    assert (place / "denoiser.plan").stat().st_size > 1.7e9


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of the architecture for which the small engine was built, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX A6000")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(Maker, "_open", lambda self, folder: "engine")


@pytest.mark.usefixtures("cached", "ada")
def test_the_first_run_of_an_engine_that_was_built_elsewhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(engine: Any, source: Source) -> Agreement:
        compared.append(engine)
        return GOOD

    monkeypatch.setattr(tensorrt, "compare", compare)
    assert small(model, device=GPU).load() == "engine"
    assert only_entry()[1].agreement == GOOD
    assert small(model, device=GPU).load() == "engine"
    assert compared == ["engine"]  # once


@pytest.mark.usefixtures("cached", "ada")
def test_an_engine_from_elsewhere_that_differs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Agreement(differences={"denoiser": 0.5}, tolerance=3e-2)
    monkeypatch.setattr(tensorrt, "compare", lambda *_: bad)
    for _ in range(2):
        with pytest.raises(AimfairError, match=r"tensorrt-rtx is not to be trusted with generate\.model: .*5\.0e-01"):
            small(model, device=GPU).load()
    assert only_entry()[1].agreement is None


@pytest.mark.usefixtures("cached", "ada")
def test_a_plan_that_is_no_longer_loaded_is_made_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [PlanRefused("denoiser.plan: tensorrt-rtx 1.7 does not load it: the driver is too old")]

    def opened(self: Maker, folder: Path) -> str:
        if refusals:
            raise refusals.pop()
        return "engine"

    monkeypatch.setattr(Maker, "_open", opened)
    monkeypatch.setattr(tensorrt, "compare", lambda *_: GOOD)
    monkeypatch.setattr(tensorrt, "export", lambda *_: None)
    monkeypatch.setattr(tensorrt, "build", lambda library, onnx, path, *_: path.write_bytes(b"new"))
    with pytest.warns(UserWarning, match="the driver is too old; building it again"):
        assert small(model, device=GPU).load() == "engine"
    place, entry = only_entry()
    assert entry.agreement == GOOD
    assert (place / "denoiser.plan").read_bytes() == b"new"


def test_a_gpu_that_tensorrt_rtx_has_no_code_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    with pytest.raises(
        AimfairError, match=r"no code for this GPU \(NVIDIA H200, 90\), only for 75, .*engine tensorrt or eager"
    ):
        small(model, device=GPU)


@pytest.mark.usefixtures("ada")
def test_targets_without_the_gpu_that_is_there(model: Path) -> None:
    with pytest.raises(AimfairError, match=r"targets: found 120, but this GPU is 86; add it"):
        small(model, device=GPU, targets=[120])


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_targets_that_the_package_does_not_know(model: Path) -> None:
    with pytest.raises(AimfairError, match=r"targets: found 90, expected some of 75, .*H200, use --generate\.engine"):
        small(model, targets=[86, 90])


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(("name", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_without_its_package(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AimfairError, match=rf"{module} is not installed; .* pip install {name} onnx onnxscript"):
        load_library(name)


def test_a_package_whose_libraries_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(tensorrt_build.importlib, "import_module", fail)
    with pytest.raises(AimfairError, match=r"import failed: libnvinfer.*engine tensorrt needs: pip install tensorrt "):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("name", "module", "version"), [("tensorrt", "tensorrt", "10.15.1"), ("tensorrt-rtx", "tensorrt_rtx", "1.2.0.54")]
)
def test_a_package_that_is_too_old(name: str, module: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, module, __version__=version)
    with pytest.raises(AimfairError, match=rf"found {name} {version}, expected .* or later: pip install --upgrade"):
        load_library(name)


def test_tensorrt_without_a_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensorrt", __version__="11.2.0")
    source, _ = load_source(model, GenerateSettings(), CPU)
    with pytest.raises(AimfairError, match=r"builds only on the GPU that runs the engine, .*tensorrt-rtx, which"):
        Maker("tensorrt", source, TensorRtSettings(), BATCHES)


def test_targets_are_for_tensorrt_rtx() -> None:
    with pytest.raises(ValueError, match="engine tensorrt builds for the local GPU"):
        GenerateSettings(engine="tensorrt", tensorrt=TensorRtSettings(targets=[90]))


def test_batches_follow_guidance_and_size(model: Path) -> None:
    def batches(**settings: Any) -> dict[str, int]:
        found = GenerateSettings(batch_size=8, **settings)
        return load_source(model, found, CPU)[1]

    assert batches() == {"denoiser": 16, "decoder": 8, "text_encoder": 1}
    assert batches(guidance_scale=1.0) == {"denoiser": 8, "decoder": 8, "text_encoder": 1}
    assert batches(render_size=256) == {"denoiser": 16, "decoder": 1, "text_encoder": 1}
