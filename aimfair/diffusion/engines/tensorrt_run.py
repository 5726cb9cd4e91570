"""Runs TensorRT plans in torch's memory, beside its stream, as CUDA graphs and without host synchronisation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.base.files import replace_file
from aimfair.base.log import Log
from aimfair.base.memory import pieces
from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.engines.store import GROWING
from aimfair.diffusion.engines.tensorrt_build import Library, Messages, without_collection


class PlanRefused(AimfairError):
    """The library does not load a plan; it must be rebuilt."""


class Stream(Protocol):
    """A queue of asynchronous work on a device."""

    device: torch.device

    def current(self) -> AbstractContextManager[object]:
        """A context in which this device is the current one."""

    def launch(self, enqueue: Callable[[int], None]) -> None:
        """Enqueues work after torch's earlier work and before its later work. ``enqueue`` takes the stream's handle."""

    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
        """Records work without running it. The function returned launches all of it on torch's current stream."""


class CudaStream:
    """A :class:`Stream` of its own: on the default stream the library would synchronise with the whole device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device)

    def launch(self, enqueue: Callable[[int], None]) -> None:
        torch_s = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(torch_s)
        enqueue(self._stream.cuda_stream)
        torch_s.wait_stream(self._stream)

    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # other threads may copy images meanwhile
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            enqueue(self._stream.cuda_stream)
        return graph.replay


class TensorRt:
    """An :class:`Engine`.

    Larger batches are split; with plans of a single size, smaller ones are padded. Inputs and outputs are copied to and
    from fixed addresses, as CUDA graphs need. Intermediate values are in torch's memory, shared by all parts, which
    never run at the same time.

    Args:
        library: the package that built the plans.
        folder: with ``<part>.plan``; tensorrt-rtx also stores there what it compiles for this GPU.
        parts: the parts that were built; their modules are not kept.
        batches: part -> the largest batch of its plan.
        padded: whether the plans take only that size.
        cuda_graphs: whether to launch a batch as a CUDA graph.
        stream: on the device of the inputs.

    Raises:
        PlanRefused: the library does not load a plan, or it belongs to another part.
        AimfairError: the GPU has too little memory.
    """

    def __init__(
        self,
        library: Library,
        folder: Path,
        parts: Sequence[Part],
        batches: Mapping[str, int],
        *,
        padded: bool,
        cuda_graphs: bool,
        stream: Stream,
        log: Log,
    ):
        size = 0
        with stream.current():
            try:
                self._plans: dict[str, _LoadedPlan] = {
                    part.name: _LoadedPlan(library, folder, part, batches[part.name], cuda_graphs, stream, log)
                    for part in parts
                }
                size = max((plan.scratch_bytes for plan in self._plans.values()), default=0)
                self._scratch = torch.empty(size, dtype=torch.uint8, device=stream.device)
            except torch.OutOfMemoryError as error:
                raise AimfairError(
                    f"generate.engine: {library.name} needs its plans and {size / 1e9:.1f} GB on {stream.device} for"
                    f" batches of {max(batches.values())}: {error}; lower --generate.batch_size"
                ) from error
        self._padded, self._stream = padded, stream

    @torch.inference_mode()
    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`Engine.run`.

        Raises:
            ValueError: an input does not match the part.
            torch.OutOfMemoryError: the GPU has too little memory, and smaller batches are possible.
            AimfairError: the GPU has too little memory for the only batch size, or the library cannot run it.
        """
        plan = self._plans[part]
        plan.check(inputs)
        total = len(inputs[0])
        outputs = plan.empty_outputs(total)
        with self._stream.current():
            for rows in pieces(total, plan.batch):
                size = rows.stop - rows.start
                try:
                    slot = plan.slot(plan.batch if self._padded else size, self._scratch)
                    found = slot.run([tensor[rows] for tensor in inputs])
                except torch.OutOfMemoryError as error:
                    if not self._padded:
                        raise  # a smaller batch may fit
                    raise AimfairError(
                        f"{part}: {error}; the engine runs only batches of {plan.batch}: lower --generate.batch_size,"
                        " or --generate.tensorrt.profile dynamic"
                    ) from error
                for output, values in zip(outputs, found, strict=True):
                    output[rows].copy_(values[:size])
        return outputs


class _LoadedPlan:
    """A part's plan, and a :class:`_Slot` for each batch size so far."""

    @without_collection()
    def __init__(
        self, library: Library, folder: Path, part: Part, batch: int, cuda_graphs: bool, stream: Stream, log: Log
    ):
        self.batch = batch
        self._part, self._inputs, self._outputs = part.name, dict(part.inputs), dict(part.outputs)
        self._library, self._stream, self._log = library, stream, log
        self._messages = Messages(library)
        self._runtime = library.api.Runtime(self._messages.logger)
        path = folder / f"{part.name}.plan"
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            if self._messages.out_of_memory:  # the plan itself may be fine
                self._fail("the plan cannot be loaded")
            raise PlanRefused(f"{path}: {library.name} {library.version} does not load it: {self._messages.reason()}")
        self._refuse_another_part(path)
        self._kernels = folder / f"{part.name}{GROWING}"
        self._config = self._runtime_config(cuda_graphs)
        self._captures = cuda_graphs and not library.just_in_time  # which has its own CUDA graphs
        self._slots: dict[int, _Slot] = {}

    @property
    def scratch_bytes(self) -> int:
        """Memory for intermediate values of the largest batch."""
        return int(self._engine.device_memory_size_v2)

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Raises ValueError if number, shape, dtype or device of the inputs differ from the part's."""
        for (name, tensors), found in zip(self._inputs.items(), inputs, strict=True):
            expected = (torch.Size((len(inputs[0]), *tensors.shape)), tensors.dtype, self._stream.device.type)
            if (found.shape, found.dtype, found.device.type) != expected:
                raise ValueError(
                    f"{self._part}: {name} is {found.dtype}{list(found.shape)} on {found.device}, expected"
                    f" {tensors.dtype}{list(expected[0])} on {self._stream.device}"
                )

    def empty_outputs(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(_empty(tensors, batch, self._stream.device) for tensors in self._outputs.values())

    @without_collection()
    def slot(self, batch: int, scratch: Tensor) -> "_Slot":
        """The slot for a batch size, created when first needed."""
        if (slot := self._slots.get(batch)) is None:
            try:
                context = self._engine.create_execution_context(self._config)
            except RuntimeError as error:
                self._fail(str(error))
            if context is None:
                self._fail("no execution context")
            slot = _Slot(context, self._stream, self._captures, self._fail)
            for tensors, bind in ((self._inputs, slot.bind_input), (self._outputs, slot.bind_output)):
                for name, values in tensors.items():
                    bind(name, _empty(values, batch, self._stream.device).zero_())
            slot.start(scratch)
            self._keep_kernels()
            self._slots[batch] = slot
        return slot

    def _runtime_config(self, cuda_graphs: bool) -> Any:
        api, config = self._library.api, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._library.just_in_time:
            if cuda_graphs:
                config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # By default slower kernels run until better ones are compiled, so bits would change during a run
            config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
            self._compiled = config.create_runtime_cache()
            if self._kernels.exists() and not self._compiled.deserialize(self._kernels.read_bytes()):
                self._log(
                    "engine kernels refused", part=self._part, file=str(self._kernels)
                )  # of another GPU or driver
            config.set_runtime_cache(self._compiled)
        return config

    def _keep_kernels(self) -> None:
        """Saves compiled kernels for the next process; the library validates them on loading."""
        if not self._library.just_in_time:
            return
        data = bytes(memoryview(self._compiled.serialize()))
        try:
            if not self._kernels.exists() or self._kernels.read_bytes() != data:
                with replace_file(self._kernels) as temporary:
                    temporary.write_bytes(data)
        except OSError as error:
            self._log.warn(f"{self._kernels}: cannot store compiled kernels, so the next run compiles again: {error}")

    def _refuse_another_part(self, path: Path) -> None:
        for name, tensors in {**self._inputs, **self._outputs}.items():
            shape = tuple(self._engine.get_tensor_shape(name))[1:]
            dtype = self._engine.get_tensor_dtype(name)
            if shape != tensors.shape or not self._library.has_dtype(tensors.dtype, dtype):
                raise PlanRefused(f"{path}: {name} is {dtype}{['B', *shape]}, expected {tensors}")

    def _fail(self, what: str) -> None:
        reason = self._messages.reason() if self._messages.errors else what
        if self._messages.out_of_memory:
            self._messages.errors.clear()
            raise torch.OutOfMemoryError(f"{self._part}: {reason}")
        raise AimfairError(
            f"generate.engine: {self._library.name} {self._library.version} cannot run {self._part}: {what}: {reason};"
            " try --generate.tensorrt.cuda_graphs false, or use --generate.engine eager"
        )


class _Slot:
    """A part at one batch size, with inputs and outputs at fixed addresses.

    Args:
        context: execution context of this slot.
        captures: whether to record a CUDA graph.
        fail: raises an error with the given description.
    """

    def __init__(self, context: Any, stream: Stream, captures: bool, fail: Callable[[str], None]):
        self._context, self._stream, self._captures, self._fail = context, stream, captures, fail
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def bind_input(self, name: str, memory: Tensor) -> None:
        if not self._context.set_input_shape(name, tuple(memory.shape)):
            self._fail(f"{name} of shape {tuple(memory.shape)}")
        self._bind(name, memory)
        self._inputs.append(memory)

    def bind_output(self, name: str, memory: Tensor) -> None:
        self._bind(name, memory)
        self._outputs.append(memory)

    def start(self, scratch: Tensor) -> None:
        """Runs once, and then records the CUDA graph. Call it once, after all tensors are bound.

        Args:
            scratch: memory for intermediate values, of the size that the plan needs.
        """
        if (needed := self._context.update_device_memory_size_for_shapes()) > len(scratch):
            scratch = torch.empty(needed, dtype=torch.uint8, device=scratch.device)
        if len(scratch):
            self._context.set_device_memory(scratch.data_ptr(), len(scratch))
        self._scratch = scratch
        self._work: Callable[[], None] = partial(self._stream.launch, self._enqueue)
        self._work()
        if self._captures:
            try:
                self._work = self._stream.capture(self._enqueue)
            except RuntimeError as error:  # from torch: an operation cannot be captured
                self._fail(f"no CUDA graph: {error}")

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of all rows, overwritten by the next run; rows beyond the inputs' are padding."""
        for memory, values in zip(self._inputs, inputs, strict=True):
            memory[: len(values)].copy_(values)
        self._work()
        return self._outputs

    def _bind(self, name: str, memory: Tensor) -> None:
        if not self._context.set_tensor_address(name, memory.data_ptr()):
            self._fail(f"{name} at its address")

    def _enqueue(self, handle: int) -> None:
        if not self._context.execute_async_v3(handle):
            self._fail("the launch failed")


def _empty(tensors: Tensors, batch: int, device: torch.device) -> Tensor:
    return torch.empty(batch, *tensors.shape, dtype=tensors.dtype, device=device)
