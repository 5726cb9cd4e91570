"""The two packages of TensorRT, which share an API: import, messages, and building plans from ONNX files.

TensorRT calls an engine on disk a plan.
"""

import gc
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aimfair.base.errors import AimfairError
from aimfair.base.files import replace_file
from aimfair.base.interrupt import Interrupt
from aimfair.base.libraries import optional
from aimfair.base.log import Log
from aimfair.diffusion.engines.engine import Part

TENSORRT, RTX = NAMES = ("tensorrt", "tensorrt-rtx")
"""Names of the engines and of their pip packages."""

_MODULES = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
_OLDEST = {TENSORRT: "11.0", RTX: "1.7"}  # the first with strongly typed networks by default
_DTYPES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int32: "INT32",
    torch.int64: "INT64",
}
_LONGEST = 400  # characters of a reason in an error


@dataclass(frozen=True)
class Library:
    """An imported package.

    Attributes:
        name: one of :data:`NAMES`.
        api: its module, untyped.
    """

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def just_in_time(self) -> bool:
        """Whether kernels are compiled on the GPU where the engine runs, so that it can be built without one."""
        return self.name == RTX

    def architectures(self) -> list[int]:
        """The supported compute capabilities, times ten; of tensorrt-rtx."""
        names = self.api.ComputeCapability.__members__
        return sorted(int(name[2:]) for name in names if name.startswith("SM"))

    def architecture(self, number: int) -> Any:
        """The library's constant for one of :meth:`architectures`."""
        return self.api.ComputeCapability.__members__[f"SM{number}"]

    def has_dtype(self, dtype: torch.dtype, found: Any) -> bool:
        """Whether ``found`` is the library's constant for a dtype of torch."""
        return bool(found == getattr(self.api.DataType, _DTYPES[dtype]))


class Messages:
    """Collects the library's log messages, instead of printing them.

    Attributes:
        logger: is passed to the library, and must outlive everything created with it.
        errors, warnings: one line each.
    """

    def __init__(self, library: Library):
        self.errors: list[str] = []
        self.warnings: list[str] = []
        severity = library.api.ILogger.Severity
        kept = {
            severity.INTERNAL_ERROR: self.errors,
            severity.ERROR: self.errors,
            severity.WARNING: self.warnings,
        }

        base: Any = library.api.ILogger

        class Logger(base):  # type: ignore[misc]  # untyped
            def __init__(self) -> None:
                base.__init__(self)  # super() would not create the C++ object

            def log(self, severity: Any, msg: str) -> None:  # called from C++, so it must not raise
                if severity in kept:
                    kept[severity].append(" ".join(msg.split()))

        self.logger = Logger()

    def reason(self) -> str:
        """The last errors, on one line."""
        text = "; ".join(dict.fromkeys(self.errors[-3:])) or "no reason given"
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

    @property
    def out_of_memory(self) -> bool:
        """Whether an error says that memory ran out."""
        text = " ".join(self.errors).lower().replace(" ", "")
        return any(word in text for word in ("outofmemory", "insufficientmemory", "cudaerror2)", "bad_alloc"))


def load_library(name: str) -> Library:
    """Imports the package of an engine.

    Raises:
        AimfairError: it is missing, too old, or cannot be loaded.
    """
    with optional(f"generate.engine {name}", f"{name} onnx onnxscript"):
        api = importlib.import_module(_MODULES[name])
    found = Library(name, api)
    if _numbers(found.version) < _numbers(_OLDEST[name]):
        raise AimfairError(
            f"generate.engine: found {name} {found.version}, expected {_OLDEST[name]} or later: pip install --upgrade"
            f" {name}"
        )
    return found


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage is collected inside: for calls of the library that log.

    It logs, in Python, while it holds a lock that the end of a builder waits for. A collection in that moment could end
    the builder of an earlier, failed build, and the process would wait for itself.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]


@dataclass(frozen=True)
class Plan:
    """How a part is built.

    Attributes:
        batch: the largest batch.
        smallest: the smallest batch; equal to ``batch`` if all are padded to one size.
        workspace: limit in bytes; None: all memory.
        optimization_level: 0 to 5, of the builder.
        targets: compute capabilities times ten, of tensorrt-rtx; empty: the local GPU.
    """

    batch: int
    smallest: int
    workspace: int | None
    optimization_level: int
    targets: tuple[int, ...]


@without_collection()
def build(
    library: Library,
    onnx: Path,
    path: Path,
    part: Part,
    plan: Plan,
    timing: Path | None,
    log: Log,
    interrupt: Interrupt,
) -> None:
    """Writes the plan of a part to ``path``, in the precision of the graph, without TF32.

    Args:
        onnx: the exported part, with a dynamic batch; its weights are in the same folder.
        timing: file of the timing cache for this GPU; None for tensorrt-rtx, which has none.

    Raises:
        AimfairError: the library cannot build it; names the node and a fix.
        Interrupted: checked between steps of the builder, which may take half a minute.
        OSError: the plan cannot be written.
    """
    begin = time.monotonic()
    messages = Messages(library)
    builder = library.api.Builder(messages.logger)
    network = builder.create_network(0)
    _parse(library, network, onnx, part, messages)
    config = _configuration(library, builder, part, plan)
    times = None if timing is None else _attach_timing(config, timing)
    config.progress_monitor = monitor = _monitor(library, interrupt)
    try:
        serialized = builder.build_serialized_network(network, config)
    except (MemoryError, RuntimeError) as error:
        serialized = None
        messages.errors.append(" ".join(str(error).split()) or "bad_alloc")
    for warning in messages.warnings:
        log("engine warning", part=part.name, message=warning)
    for phase, seconds in monitor.phases:
        log("engine phase", part=part.name, phase=phase, seconds=round(seconds, 3))
    if monitor.raised is not None:
        raise monitor.raised
    interrupt.check()
    if serialized is None:
        raise _refusal(library, part, plan, messages)
    with path.open("wb") as file:
        file.write(memoryview(serialized))
    if timing is not None and times is not None:
        with replace_file(timing) as temporary:
            temporary.write_bytes(memoryview(times.serialize()))
    log("engine built", part=part.name, seconds=round(time.monotonic() - begin, 3), bytes=path.stat().st_size)


def _parse(library: Library, network: Any, onnx: Path, part: Part, messages: Messages) -> None:
    parser = library.api.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(onnx)):  # by path, because of the external weights
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [f"node {fault.node_name()} ({fault.node_operator()}): {fault.desc()}" for fault in faults]
        reason = " ".join("; ".join(nodes[:3]).split()) or messages.reason()
        raise AimfairError(
            f"generate.engine: {library.name} {library.version} cannot read {part.name}: {reason}; try another"
            f" generate.dtype or a later version (pip install --upgrade {library.name}), or use --generate.engine"
            " onnxruntime or eager"
        )
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if inputs != set(part.inputs):  # unused inputs are missing from the graph
        raise AimfairError(
            f"generate.engine: {part.name} has the inputs {', '.join(sorted(inputs))} in {onnx.name}, expected"
            f" {', '.join(sorted(part.inputs))}; use --generate.engine eager"
        )


def _configuration(library: Library, builder: Any, part: Part, plan: Plan) -> Any:
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, part, plan))
    config.clear_flag(library.api.BuilderFlag.TF32)  # it has 10 bits of mantissa, eager 23
    config.builder_optimization_level = plan.optimization_level
    if plan.workspace is not None:
        config.set_memory_pool_limit(library.api.MemoryPoolType.WORKSPACE, plan.workspace)
    if plan.targets:
        config.num_compute_capabilities = len(plan.targets)
        for index, number in enumerate(plan.targets):
            config.set_compute_capability(library.architecture(number), index)
    return config


def _profile(builder: Any, part: Part, plan: Plan) -> Any:
    profile = builder.create_optimization_profile()
    for name, tensors in part.inputs.items():
        smallest, batch = ((size, *tensors.shape) for size in (plan.smallest, plan.batch))
        profile.set_shape(name, smallest, batch, batch)
    return profile


def _attach_timing(config: Any, path: Path) -> Any:
    """The library rejects a timing cache of another version or GPU; then it starts empty."""
    for known in (path.read_bytes() if path.exists() else b"", b""):
        times = config.create_timing_cache(known)
        if times is not None and config.set_timing_cache(times, False):
            return times
    return None


def _monitor(library: Library, interrupt: Interrupt) -> Any:
    base: Any = library.api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # untyped
        """Checks ``interrupt`` between steps. Called from C++, so it must not raise.

        Attributes:
            phases: (name, seconds) of the top-level phases.
            raised: an exception raised meanwhile, such as by a second Ctrl-C.
        """

        def __init__(self) -> None:
            base.__init__(self)  # super() would not create the C++ object
            self.phases: list[tuple[str, float]] = []
            self.raised: BaseException | None = None
            self._begun: dict[str, float] = {}
            self._root: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._root = phase_name
            elif parent_phase == self._root:
                self._begun[phase_name] = time.monotonic()

        def phase_finish(self, phase_name: str) -> None:
            if (begun := self._begun.pop(phase_name, None)) is not None:
                self.phases.append((phase_name, time.monotonic() - begun))

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return self.raised is None and not interrupt.requested
            except BaseException as error:  # signal handlers run in any Python code
                self.raised = error
                return False

    return Monitor()


def _refusal(library: Library, part: Part, plan: Plan, messages: Messages) -> AimfairError:
    what = f"generate.engine: {library.name} {library.version} cannot build {part.name} for batches of {plan.batch}"
    if messages.out_of_memory:
        return AimfairError(
            f"{what}: out of memory: {messages.reason()}; lower --generate.batch_size or set"
            " --generate.tensorrt.workspace_gb, and stop other processes on the GPU"
        )
    return AimfairError(
        f"{what}: {messages.reason()}; try another generate.dtype, a smaller generate.batch_size or a later version"
        f" (pip install --upgrade {library.name}), or use --generate.engine onnxruntime or eager"
    )
