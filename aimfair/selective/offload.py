"""Optimizer state in host memory, copied to the GPU for the step and back.

The state of the parameters of one operator call is one buffer of pinned memory, a *bucket*. Two arenas on the GPU hold
buckets in turns: while one is stepped, the other sends the last bucket back and receives the next one, which is the one
that followed in the step before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from aimfair.selective.distributed import is_dtensor
from aimfair.selective.state import Slot
from aimfair.selective.streams import is_capturing

if TYPE_CHECKING:
    from aimfair.selective.launch import Launch

Event = Any
"""A point in the work of a stream."""

ALIGNMENT = 256

BUCKET_BYTES = 2**25
"""State that an ordinary step copies at once: 1 ms on PCIe 4.0, beside which the 10 us to begin a copy do not count."""


class CopyEngine(Protocol):
    """Copies between host and device that overlap with the device's work, and the order between both."""

    def host(self, nbytes: int) -> Tensor:
        """New host memory, uint8."""
        ...

    def device(self, nbytes: int) -> Tensor:
        """New memory of the device, uint8; once freed, it is used again after copies that are under way."""
        ...

    def upload(self, device: Tensor, host: Tensor, after: Sequence[Event]) -> Event: ...

    def download(self, host: Tensor, device: Tensor, after: Sequence[Event]) -> Event: ...

    def record(self) -> Event:
        """What the device's work, queued so far on the current stream, has done."""
        ...

    def wait(self, events: Sequence[Event]) -> None:
        """Work that is queued on the current stream from now on comes after ``events``."""
        ...

    def synchronize(self) -> None:
        """The host waits for all downloads."""
        ...


class CudaCopies:
    """One stream for each direction: the bus carries both at once."""

    def __init__(self, device: torch.device):
        self._device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def device(self, nbytes: int) -> Tensor:
        memory = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        for stream in (self._up, self._down):
            memory.record_stream(stream)
        return memory

    def upload(self, device: Tensor, host: Tensor, after: Sequence[Event]) -> Event:
        return self._copy(self._up, device, host, after)

    def download(self, host: Tensor, device: Tensor, after: Sequence[Event]) -> Event:
        return self._copy(self._down, host, device, after)

    @staticmethod
    def _copy(stream: torch.cuda.Stream, to: Tensor, source: Tensor, after: Sequence[Event]) -> Event:
        for event in after:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
        return stream.record_event()

    def record(self) -> Event:
        return torch.cuda.current_stream(self._device).record_event()

    def wait(self, events: Sequence[Event]) -> None:
        for event in events:
            torch.cuda.current_stream(self._device).wait_event(event)

    def synchronize(self) -> None:
        self._down.synchronize()


COPIES: Callable[[torch.device], CopyEngine] = CudaCopies


def can_copy(device: torch.device) -> bool:
    return device.type == "cuda"


@dataclass(eq=False)
class _Arena:
    """Memory on the device for one bucket at a time.

    Attributes:
        bucket: what it holds, or is being sent.
        last: the last copies to and from it.
    """

    memory: Tensor
    bucket: "Bucket | None" = None
    last: list[Event] = field(default_factory=list)


@dataclass(eq=False)
class Bucket:
    """The state of the parameters of one operator call.

    Attributes:
        held: the tensors in host memory, in the order of ``places``.
        places: list and index in it -> bytes from where to where.
        arena: its number.
        last: its last copies.
    """

    memory: Tensor
    held: list[Tensor]
    places: dict[tuple[str, int], tuple[int, int]]
    arena: int
    last: list[Event] = field(default_factory=list)

    viewed: tuple[Tensor, dict[str, list[Tensor]]] | None = None

    def is_of(self, states: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether the states' tensors are these: others may have been put in their places."""
        return all(map(is_, self.held, (states[i][name] for name, i in self.places)))

    def views(self, memory: Tensor) -> dict[str, list[Tensor]]:
        """The tensors in other memory that holds the bucket at its beginning, by name."""
        if self.viewed is None or self.viewed[0] is not memory:
            views: dict[str, list[Tensor]] = {}
            for ((name, _), (begin, end)), held in zip(self.places.items(), self.held, strict=True):
                views.setdefault(name, []).append(memory[begin:end].view(held.dtype).view(held.shape))
            self.viewed = memory, views
        return self.viewed[1]


def require_offloadable(slots: Mapping[Tensor, Slot], *, compact: bool) -> None:
    """Raises where state cannot be kept in host memory.

    Raises:
        ValueError: dense state, or parameters, the first is named, that are sharded or not on a GPU.
    """
    if not compact:
        raise ValueError('offload=True needs state="compact"')
    for parameter, slot in slots.items():
        if is_dtensor(parameter):
            raise ValueError(f"offload=True: {slot.name!r} is sharded (DTensor), which is not supported")
        if not can_copy(parameter.device):
            raise ValueError(f"offload=True: {slot.name!r} is on {parameter.device}, where its state is anyway")


def split(parameters: Sequence[Tensor], nbytes: Callable[[Tensor], int]) -> Iterator[list[Tensor]]:
    """The parameters in parts whose state has at most :data:`BUCKET_BYTES`, a power of two, or one parameter.

    torch rounds pinned memory up to a power of two: a little more would take twice as much.

    Args:
        nbytes: of a parameter's state in a bucket, :func:`aligned`.
    """
    part: list[Tensor] = []
    size = 0
    for parameter in parameters:
        own = nbytes(parameter)
        if part and size + own > BUCKET_BYTES:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += own
    if part:
        yield part


def aligned(nbytes: int) -> int:
    """What a tensor of so many bytes takes in a bucket."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Offload:
    """The offloaded state of an optimizer."""

    def __init__(self) -> None:
        self._devices: dict[torch.device, _DeviceOffload] = {}

    def begin(self) -> None:
        """Before a step: what was sent in advance and not used may have changed since."""
        for offload in self._devices.values():
            offload.begin()

    def forget(self) -> None:
        """The launches of earlier steps are not used again."""
        for offload in self._devices.values():
            offload.forget()

    def synchronize(self) -> None:
        """The host waits until the state in its memory is that of the last step."""
        for offload in self._devices.values():
            offload.synchronize()

    @contextmanager
    def on_device(self, launch: "Launch") -> Iterator[dict[str, list[Tensor]]]:
        """The state tensors of a launch on its device, by name, for what is queued on the current stream inside."""
        names = [*launch.state_names, *["master"] * launch.has_masters]
        if not names:
            yield {}
            return
        if launch.device not in self._devices:
            self._devices[launch.device] = _DeviceOffload(launch.device)
        offload = self._devices[launch.device]
        if launch.bucket is None or not launch.bucket.is_of(launch.states):
            launch.bucket = offload.adopt(launch.states, names)
        with offload.on_device(launch.bucket) as state:
            yield state


class _DeviceOffload:
    """The part on one device."""

    def __init__(self, device: torch.device):
        self._device, self._engine = device, COPIES(device)
        self._arenas = [_Arena(self._engine.device(0)) for _ in range(2)]
        self._buckets = 0
        self._next: dict[Bucket, Bucket] = {}
        self._last: Bucket | None = None

    def begin(self) -> None:
        self._last = None
        for arena in self._arenas:
            arena.bucket = None

    def forget(self) -> None:
        self._next.clear()
        self.begin()

    def adopt(self, states: Sequence[dict[str, Tensor]], names: Sequence[str]) -> Bucket:
        """Moves tensors of the parameters' states into a new bucket, and puts views of it in their places."""
        tensors = {(name, i): state[name] for name in names for i, state in enumerate(states)}
        sizes = [aligned(tensor.nbytes) for tensor in tensors.values()]
        begins = list(accumulate(sizes, initial=0))
        places = {key: (b, b + t.nbytes) for (key, t), b in zip(tensors.items(), begins, strict=False)}
        self._engine.synchronize()  # state that is in another bucket is read here
        bucket = Bucket(self._engine.host(begins[-1]), list(tensors.values()), places, self._buckets % 2)
        self._buckets += 1
        held = bucket.views(bucket.memory)
        for (name, i), tensor in tensors.items():
            states[i][name] = held[name][i].copy_(tensor)
        bucket.held = [states[i][name] for name, i in tensors]
        arena = self._arenas[bucket.arena]
        if arena.memory.numel() < begins[-1]:
            self._arenas[bucket.arena] = _Arena(self._engine.device(begins[-1]))
        return bucket

    @contextmanager
    def on_device(self, bucket: Bucket) -> Iterator[dict[str, list[Tensor]]]:
        if is_capturing(self._device):
            raise RuntimeError("offload=True: copies from and to the host cannot be in a CUDA graph")
        if self._last is not None:
            self._next[self._last] = bucket
        self._last = bucket
        for needed in (bucket, self._next.get(bucket)):
            if needed is not None and (needed is bucket or needed.arena != bucket.arena):
                self._upload(needed)
        arena = self._arenas[bucket.arena]
        self._engine.wait(arena.last)
        try:
            yield bucket.views(arena.memory)
        finally:
            done = self._engine.record()
            arena.last = bucket.last = [self._engine.download(bucket.memory, self._on(bucket), [done])]
            arena.bucket = None

    def _upload(self, bucket: Bucket) -> None:
        arena = self._arenas[bucket.arena]
        if arena.bucket is not bucket:
            after = [*arena.last, *bucket.last]
            arena.last = [self._engine.upload(self._on(bucket), bucket.memory, after)]
            arena.bucket = bucket

    def _on(self, bucket: Bucket) -> Tensor:
        return self._arenas[bucket.arena].memory[: bucket.memory.numel()]

    def synchronize(self) -> None:
        self._engine.synchronize()
