"""The two packages of TensorRT, whose classes are the same: their import, their messages, and plans from ONNX files.

A plan is what TensorRT calls an engine on disk.
"""

import importlib
import time
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
"""Of the engines, and of the packages that ``pip install`` knows."""

_MODULES = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
_OLDEST = {TENSORRT: "11.0", RTX: "1.7"}  # networks have the precision of their graph, without being asked
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
    """A package that was imported.

    Attributes:
        name: one of :data:`NAMES`.
        api: its module, which has no types.
    """

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def just_in_time(self) -> bool:
        """Whether an engine is compiled for the GPU where it runs, and may be built without one."""
        return self.name == RTX

    def architectures(self) -> list[int]:
        """Compute capabilities times ten that engines can be built for; of tensorrt-rtx."""
        names = self.api.ComputeCapability.__members__
        return sorted(int(name[2:]) for name in names if name.startswith("SM"))

    def architecture(self, number: int) -> Any:
        """The library's word for one of :meth:`architectures`."""
        return self.api.ComputeCapability.__members__[f"SM{number}"]

    def has_dtype(self, dtype: torch.dtype, found: Any) -> bool:
        """Whether the library's word for a dtype is that of torch."""
        return bool(found == getattr(self.api.DataType, _DTYPES[dtype]))


class Messages:
    """What the library says while it works: nothing of it goes to the terminal.

    Attributes:
        logger: to be given to the library, and kept for as long as anything that it made.
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

        class Logger(base):  # type: ignore[misc]  # it has no types
            def __init__(self) -> None:
                base.__init__(self)  # super() would not make the C++ object

            def log(self, severity: Any, msg: str) -> None:  # called from C++, through which nothing may be raised
                if severity in kept:
                    kept[severity].append(" ".join(msg.split()))

        self.logger = Logger()

    def reason(self) -> str:
        """The last errors, in one line."""
        text = "; ".join(dict.fromkeys(self.errors[-3:])) or "no reason given"
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

    @property
    def out_of_memory(self) -> bool:
        """Whether an error says so."""
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


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]


@dataclass(frozen=True)
class Plan:
    """How a part is built.

    Attributes:
        batch: the largest, in images.
        smallest: images that it must run; ``batch`` where all batches are padded to one size.
        workspace: bytes that one operation may take for itself; None: all there is.
        optimization_level: 0 to 5, of the builder.
        targets: compute capabilities times ten, of tensorrt-rtx; none: the GPU that is there.
    """

    batch: int
    smallest: int
    workspace: int | None
    optimization_level: int
    targets: tuple[int, ...]


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
    """Writes the plan of a part to ``path``. Precision is that of the graph, and TF32 is off.

    Args:
        onnx: of the part, as exported: its first dimension is free. Weights are read from beside it.
        timing: keeps what the builder has measured on this GPU, for later builds; tensorrt-rtx measures nothing.

    Raises:
        AimfairError: the library cannot build it; says which node, and what to do.
        Interrupted: the builder looks between any two steps; one of them may take half a minute.
        OSError: the plan cannot be written.
    """
    begin = time.monotonic()
    messages = Messages(library)
    builder = library.api.Builder(messages.logger)
    network = builder.create_network(0)
    _parse(library, network, onnx, part, messages)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, part, plan))
    config.clear_flag(library.api.BuilderFlag.TF32)  # 10 bits where eager has 23
    config.builder_optimization_level = plan.optimization_level
    if plan.workspace is not None:
        config.set_memory_pool_limit(library.api.MemoryPoolType.WORKSPACE, plan.workspace)
    if plan.targets:
        config.num_compute_capabilities = len(plan.targets)
        for index, number in enumerate(plan.targets):
            config.set_compute_capability(library.architecture(number), index)
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
    if not parser.parse_from_file(str(onnx)):  # the path: weights lie beside it
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [f"node {fault.node_name()} ({fault.node_operator()}): {fault.desc()}" for fault in faults]
        reason = " ".join("; ".join(nodes[:3]).split()) or messages.reason()
        raise AimfairError(
            f"generate.engine: {library.name} {library.version} cannot read {part.name}: {reason}; try another"
            f" generate.dtype or a later version (pip install --upgrade {library.name}), or use --generate.engine"
            " onnxruntime or eager"
        )
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if inputs != set(part.inputs):  # what a module does not use is left out of its graph
        raise AimfairError(
            f"generate.engine: {part.name} has the inputs {', '.join(sorted(inputs))} in {onnx.name}, expected"
            f" {', '.join(sorted(part.inputs))}; use --generate.engine eager"
        )


def _profile(builder: Any, part: Part, plan: Plan) -> Any:
    profile = builder.create_optimization_profile()
    for name, tensors in part.inputs.items():
        smallest, batch = ((size, *tensors.shape) for size in (plan.smallest, plan.batch))
        profile.set_shape(name, smallest, batch, batch)
    return profile


def _attach_timing(config: Any, path: Path) -> Any:
    """The library rejects timings of another version or GPU by their header; then the cache starts empty."""
    for known in (path.read_bytes() if path.exists() else b"", b""):
        times = config.create_timing_cache(known)
        if times is not None and config.set_timing_cache(times, False):
            return times
    return None


def _monitor(library: Library, interrupt: Interrupt) -> Any:
    base: Any = library.api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # it has no types
        """Asks ``interrupt`` between steps. Called from C++, through which nothing may be raised.

        Attributes:
            phases: (name, seconds) of those that are not part of another.
            raised: what came while it was asked, such as a second Ctrl-C.
        """

        def __init__(self) -> None:
            base.__init__(self)  # super() would not make the C++ object
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
            except BaseException as error:  # a signal handler runs wherever Python does
                self.raised = error
                return False

    return Monitor()


def _refusal(library: Library, part: Part, plan: Plan, messages: Messages) -> AimfairError:
    what = f"generate.engine: {library.name} {library.version} cannot build {part.name} for batches of {plan.batch}"
    if messages.out_of_memory:
        return AimfairError(
            f"{what}: out of memory: {messages.reason()}; lower --generate.batch_size or set"
            " --generate.tensorrt.workspace_gb, and end what else runs on the GPU"
        )
    return AimfairError(
        f"{what}: {messages.reason()}; try another generate.dtype, a smaller generate.batch_size or a later version"
        f" (pip install --upgrade {library.name}), or use --generate.engine onnxruntime or eager"
    )
