"""How plans of TensorRT are run, with a stand-in for its library: contexts that find their graph in ONNX Runtime.

It checks what TensorRT would: that shapes are within the profile, that every tensor has a shape and an address and that
there is memory for intermediate values. It reads and writes the addresses it is given, on the CPU.
"""

import ctypes
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines.agreement import compare
from aimfair.diffusion.engines.engine import Eager, Part, Source
from aimfair.diffusion.engines.tensorrt_build import Library
from aimfair.diffusion.engines.tensorrt_run import PlanRefused, TensorRt
from aimfair.diffusion.model import SHIPPED
from aimfair.diffusion.text_to_image import load_source
from aimfair.generation.settings import GenerateSettings

CPU = torch.device("cpu")
HANDLE = 4711
SCRATCH = {"denoiser": 1000, "decoder": 3000, "text_encoder": 500}
ELEMENTS = {
    "tensor(float)": (np.float32, tensorrt_rtx.DataType.FLOAT),
    "tensor(int64)": (np.int64, tensorrt_rtx.DataType.INT64),
}


class HostStream:
    """Does at once what it is given."""

    device = CPU

    def __init__(self) -> None:
        self.launched = self.captured = self.replayed = 0

    def current(self) -> AbstractContextManager[object]:
        return nullcontext()

    def launch(self, enqueue: Callable[[int], None]) -> None:
        self.launched += 1
        enqueue(HANDLE)

    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            enqueue(HANDLE)

        return replay


class StandIn:
    """The library. What it did is in its attributes.

    Attributes:
        sizes: (part, batch) of every launch.
        contexts: that were made.
        say: an error, and from then on launches fail with it.
        needed: bytes that a context asks for beside what its plan says.
    """

    def __init__(self, smallest: dict[str, int], largest: dict[str, int]):
        self.smallest, self.largest = smallest, largest
        self.sizes: list[tuple[str, int]] = []
        self.contexts: list[Any] = []
        self.configs: list[Any] = []
        self.say: str | None = None
        self.needed = 0
        self.kernels_fit = True
        self.kernels_read: list[bytes] = []

    def library(self, name: str) -> Library:
        real = tensorrt_rtx
        same = {
            kind: getattr(real, kind)
            for kind in (
                "ILogger",
                "DataType",
                "ExecutionContextAllocationStrategy",
                "CudaGraphStrategy",
                "DynamicShapesKernelSpecializationStrategy",
            )
        }
        return Library(name, SimpleNamespace(**same, __version__="11.9", Runtime=self.runtime))

    def runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine(plan, logger))

    def engine(self, plan: bytes, logger: Any) -> Any:
        import onnxruntime

        if plan == b"of another version":
            logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "Error Code 1: version tag\n does not match")
            return None
        if plan == b"too large":
            logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (no further information)")
            return None
        part = Path(plan.decode()).stem
        session = onnxruntime.InferenceSession(plan.decode(), providers=["CPUExecutionProvider"])
        tensors = {value.name: value for value in (*session.get_inputs(), *session.get_outputs())}
        return SimpleNamespace(
            device_memory_size_v2=SCRATCH[part],
            get_tensor_shape=lambda name: (-1, *tensors[name].shape[1:]),
            get_tensor_dtype=lambda name: ELEMENTS[tensors[name].type][1],
            create_runtime_config=self.config,
            create_execution_context=lambda config: self.context(part, session, config, logger),
        )

    def config(self) -> Any:
        config = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: setattr(config, "strategy", strategy),
            create_runtime_cache=lambda: SimpleNamespace(deserialize=self.read_kernels, serialize=lambda: b"kernels"),
            set_runtime_cache=lambda cache: setattr(config, "cache", cache),
        )
        self.configs.append(config)
        return config

    def read_kernels(self, data: bytes) -> bool:
        self.kernels_read.append(data)
        return self.kernels_fit

    def context(self, part: str, session: Any, config: Any, logger: Any) -> Any:
        assert config.strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        context = Context(self, part, session, logger)
        self.contexts.append(context)
        return context


class Context:
    def __init__(self, library: StandIn, part: str, session: Any, logger: Any):
        self.library, self.part, self.session, self.logger = library, part, session, logger
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.library.smallest[self.part] <= shape[0] <= self.library.largest[self.part]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.shapes) == {value.name for value in self.session.get_inputs()}
        return SCRATCH[self.part] + self.library.needed

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def execute_async_v3(self, handle: int) -> bool:
        assert handle == HANDLE
        assert self.memory is not None
        assert self.memory[1] >= SCRATCH[self.part] + self.library.needed
        if self.library.say is not None:
            self.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, self.library.say)
            return False
        (batch,) = {shape[0] for shape in self.shapes.values()}
        self.library.sizes.append((self.part, batch))
        names = [value.name for value in self.session.get_outputs()]
        outputs = self.session.run(names, {value.name: self.array(value) for value in self.session.get_inputs()})
        for value, found in zip(self.session.get_outputs(), outputs, strict=True):
            ctypes.memmove(self.addresses[value.name], np.ascontiguousarray(found).ctypes.data, found.nbytes)
        return True

    def array(self, value: Any) -> Any:
        element, shape = np.dtype(ELEMENTS[value.type][0]), self.shapes[value.name]
        assert [*shape[1:]] == value.shape[1:]
        data = ctypes.string_at(self.addresses[value.name], int(np.prod(shape)) * element.itemsize)
        return np.frombuffer(data, element).reshape(shape)


BATCHES = {"denoiser": 4, "decoder": 2, "text_encoder": 1}


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source(SHIPPED["digits"], GenerateSettings(), CPU)[0]


@pytest.fixture
def folder(digits_onnx: Path, tmp_path: Path) -> Path:
    """Plans that name their graph."""
    for part in BATCHES:
        (tmp_path / f"{part}.plan").write_text(str(digits_onnx / f"{part}.onnx"))
    return tmp_path


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn(BATCHES, BATCHES)


def engine_of(
    stand_in: StandIn,
    folder: Path,
    source: Source,
    *,
    name: str = "tensorrt",
    padded: bool = True,
    cuda_graphs: bool = False,
    stream: HostStream | None = None,
    log: Log = NOWHERE,
) -> TensorRt:
    return TensorRt(
        stand_in.library(name),
        folder,
        source.parts,
        BATCHES,
        padded=padded,
        cuda_graphs=cuda_graphs,
        stream=stream or HostStream(),
        log=log,
    )


def noise(part: Part, batch: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *tensors.shape, generator=generator) for tensors in part.inputs.values()]


@pytest.fixture
def eager(source: Source) -> Iterator[Eager]:
    with torch.inference_mode():
        yield Eager(source)


@pytest.mark.parametrize(("name", "cuda_graphs"), [("tensorrt", True), ("tensorrt-rtx", False)])
def test_it_agrees_with_eager(source: Source, folder: Path, stand_in: StandIn, name: str, cuda_graphs: bool) -> None:
    engine = engine_of(stand_in, folder, source, name=name, cuda_graphs=cuda_graphs)
    assert (agreement := compare(engine, source)).good, agreement
    assert {part for part, _ in stand_in.sizes} == set(BATCHES)


@pytest.mark.parametrize(("batch", "pieces"), [(1, 1), (4, 1), (9, 3)])
@pytest.mark.parametrize("padded", [True, False])
def test_any_number_of_images(
    source: Source, folder: Path, eager: Eager, batch: int, pieces: int, padded: bool
) -> None:
    stand_in = StandIn(BATCHES if padded else dict.fromkeys(BATCHES, 1), BATCHES)
    engine = engine_of(stand_in, folder, source, padded=padded)
    inputs = noise(source.parts[0], batch)
    (found,), (expected,) = engine.run("denoiser", inputs), eager.run("denoiser", inputs)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    sizes = [size for _, size in stand_in.sizes]
    if padded:
        assert sizes == [4] * (1 + pieces)  # one more to begin with
        assert len(stand_in.contexts) == 1
    else:
        assert set(sizes) == {batch // pieces, -(-batch // pieces)}
        assert len(stand_in.contexts) == len(set(sizes))


def test_rows_that_fill_up_change_nothing(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source)
    inputs = noise(source.parts[0], 2)
    (fresh,) = engine.run("denoiser", inputs)
    engine.run("denoiser", [tensor.fill_(torch.nan) for tensor in noise(source.parts[0], 4)])
    (again,) = engine.run("denoiser", inputs)
    assert torch.equal(fresh, again)


def test_what_was_given_back_stays(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source, cuda_graphs=True)
    (first,) = engine.run("decoder", noise(source.parts[1], 2))
    kept = first.clone()
    (second,) = engine.run("decoder", noise(source.parts[1], 2, seed=1))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_inputs_that_are_not_contiguous(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source)
    latents = torch.randn(2, 8, 8, 4).permute(0, 3, 2, 1)
    (found,), (expected,) = (engine.run("decoder", [values]) for values in (latents, latents.contiguous()))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values.half(), r"latents is torch\.float16\[2, 4, 8, 8\] on cpu, expected torch\.float32"),
        (lambda values: values[:, :3], r"float32\[2, 3, 8, 8\] on cpu, expected torch\.float32\[2, 4, 8, 8\]"),
        (lambda values: values.to("meta"), "on meta, expected"),
    ],
)
def test_inputs_of_another_kind(
    source: Source, folder: Path, stand_in: StandIn, change: Callable[..., Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        engine_of(stand_in, folder, source).run("decoder", [change(noise(source.parts[1], 2)[0])])
    assert stand_in.sizes == []


def test_inputs_of_different_batches(source: Source, folder: Path, stand_in: StandIn) -> None:
    sample, timestep, embeddings = noise(source.parts[0], 2)
    with pytest.raises(ValueError, match="embeddings"):
        engine_of(stand_in, folder, source).run("denoiser", [sample, timestep, embeddings[:1]])


def test_intermediate_values_have_one_place(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source)
    for number in range(2):
        engine.run(source.parts[number].name, noise(source.parts[number], 1))
    assert len(stand_in.contexts) == 2
    assert {context.memory for context in stand_in.contexts} == {(engine._scratch.data_ptr(), 3000)}


def test_a_context_that_needs_more_than_its_plan_said(source: Source, folder: Path, stand_in: StandIn) -> None:
    stand_in.needed = 5000
    engine_of(stand_in, folder, source).run("denoiser", noise(source.parts[0], 1))
    assert stand_in.contexts[0].memory[1] == 6000


# -- CUDA graphs -------------------------------------------------------------------------------------------------------


def test_a_graph_is_recorded_once_after_a_first_run(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source, cuda_graphs=True, stream=(stream := HostStream()))
    for seed in range(3):
        engine.run("denoiser", noise(source.parts[0], 4, seed))
    assert (stream.launched, stream.captured, stream.replayed) == (1, 1, 3)
    addresses = stand_in.contexts[0].addresses
    engine.run("denoiser", noise(source.parts[0], 3))
    assert stand_in.contexts[0].addresses == addresses


def test_each_size_has_its_graph(source: Source, folder: Path) -> None:
    stand_in, stream = StandIn(dict.fromkeys(BATCHES, 1), BATCHES), HostStream()
    engine = engine_of(stand_in, folder, source, padded=False, cuda_graphs=True, stream=stream)
    for batch in (4, 3, 4, 3):
        engine.run("denoiser", noise(source.parts[0], batch))
    assert (stream.captured, stream.replayed, len(stand_in.contexts)) == (2, 4, 2)


def test_tensorrt_rtx_has_graphs_of_its_own(source: Source, folder: Path, stand_in: StandIn) -> None:
    stream = HostStream()
    engine = engine_of(stand_in, folder, source, name="tensorrt-rtx", cuda_graphs=True, stream=stream)
    engine.run("denoiser", noise(source.parts[0], 4))
    assert (stream.captured, stream.launched) == (0, 2)
    for config in stand_in.configs:
        assert config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert (
            config.dynamic_shapes_kernel_specialization_strategy
            == tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        )


def test_without_graphs(source: Source, folder: Path, stand_in: StandIn) -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        engine = engine_of(stand_in, folder, source, name=name, stream=(stream := HostStream()))
        engine.run("denoiser", noise(source.parts[0], 4))
        assert (stream.captured, stream.launched) == (0, 2)
    assert not any(hasattr(config, "cuda_graph_strategy") for config in stand_in.configs)


def test_what_cannot_be_recorded(source: Source, folder: Path, stand_in: StandIn) -> None:
    class Refusing(HostStream):
        def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing")

    engine = engine_of(stand_in, folder, source, cuda_graphs=True, stream=Refusing())
    with pytest.raises(AimfairError, match=r"run denoiser: no CUDA graph: operation not .*cuda_graphs false"):
        engine.run("denoiser", noise(source.parts[0], 4))


# -- kernels that tensorrt-rtx compiles --------------------------------------------------------------------------------


def test_compiled_kernels_are_kept(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine_of(stand_in, folder, source, name="tensorrt-rtx").run("denoiser", noise(source.parts[0], 1))
    assert (folder / "denoiser.kernels").read_bytes() == b"kernels"
    assert not (folder / "decoder.kernels").exists()
    assert stand_in.kernels_read == []
    engine_of(stand_in, folder, source, name="tensorrt-rtx")
    assert stand_in.kernels_read == [b"kernels"]
    assert all(hasattr(config, "cache") for config in stand_in.configs)


def test_kernels_of_another_gpu(source: Source, folder: Path, stand_in: StandIn) -> None:
    (folder / "denoiser.kernels").write_bytes(b"of another GPU")
    stand_in.kernels_fit = False
    log = Log(folder / "log")
    engine_of(stand_in, folder, source, name="tensorrt-rtx", log=log).run("denoiser", noise(source.parts[0], 1))
    log.close()
    assert json.loads((folder / "log").read_text())["event"] == "engine kernels refused"
    assert (folder / "denoiser.kernels").read_bytes() == b"kernels"


def test_kernels_that_cannot_be_kept(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source, name="tensorrt-rtx")
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=r"denoiser\.kernels: cannot store compiled kernels"):
        engine.run("denoiser", noise(source.parts[0], 1))


def test_tensorrt_compiles_none(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine_of(stand_in, folder, source).run("denoiser", noise(source.parts[0], 1))
    assert not list(folder.glob("*.kernels"))


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_launch_that_fails(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source)
    engine.run("denoiser", noise(source.parts[0], 1))
    stand_in.say = "Error Code 1: Cask\n (no kernel image)"
    with pytest.raises(
        AimfairError, match=r"tensorrt 11\.9 cannot run denoiser: the launch failed: Error Code 1: Cask \(no kernel"
    ):
        engine.run("denoiser", noise(source.parts[0], 1))


def test_full_memory_is_told_as_torch_s(source: Source, folder: Path) -> None:
    stand_in = StandIn(dict.fromkeys(BATCHES, 1), BATCHES)
    engine = engine_of(stand_in, folder, source, padded=False)
    stand_in.say = "Error Code 2: OutOfMemory (Requested size was 7 bytes)"
    with pytest.raises(torch.OutOfMemoryError, match="denoiser: Error Code 2"):
        engine.run("denoiser", noise(source.parts[0], 1))
    stand_in.say = None
    engine.run("denoiser", noise(source.parts[0], 1))
    stand_in.say = "something else"
    with pytest.raises(AimfairError, match="something else"):
        engine.run("denoiser", noise(source.parts[0], 1))


def test_full_memory_of_an_engine_for_one_size(source: Source, folder: Path, stand_in: StandIn) -> None:
    engine = engine_of(stand_in, folder, source)
    stand_in.say = "Error Code 2: OutOfMemory (Requested size was 7 bytes)"
    with pytest.raises(AimfairError, match=r"OutOfMemory .*runs only batches of 4: lower --generate\.batch_size, or"):
        engine.run("denoiser", noise(source.parts[0], 1))


def test_no_memory_for_intermediate_values(
    source: Source, folder: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(
        AimfairError, match=r"tensorrt needs its plans and 0\.0 GB on cpu for batches of 4: .*lower --generate\.batch"
    ):
        engine_of(stand_in, folder, source)


def test_a_plan_of_another_version(source: Source, folder: Path, stand_in: StandIn) -> None:
    (folder / "decoder.plan").write_bytes(b"of another version")
    with pytest.raises(
        PlanRefused, match=r"decoder\.plan: tensorrt 11\.9 does not load it: Error Code 1: version tag d"
    ):
        engine_of(stand_in, folder, source)


def test_a_plan_that_does_not_fit_into_memory_is_not_to_blame(source: Source, folder: Path, stand_in: StandIn) -> None:
    (folder / "decoder.plan").write_bytes(b"too large")
    with pytest.raises(AimfairError, match=r"tensorrt needs its plans and .*OutOfMemory.*lower --generate\.batch_size"):
        engine_of(stand_in, folder, source)


def test_a_plan_of_another_part(source: Source, folder: Path, stand_in: StandIn) -> None:
    other, _ = load_source(SHIPPED["digits"], GenerateSettings(render_size=64), CPU)
    with pytest.raises(PlanRefused, match=r"denoiser\.plan: sample is .*, expected float32\[B, 4, 16, 16\]"):
        engine_of(stand_in, folder, other)
