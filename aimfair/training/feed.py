"""From stored images to inputs of a model: normalised, and for training augmented in the background."""

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aimfair.base.ranks import ALONE, Ranks
from aimfair.data.augment import Changes, change_on_device, change_pixels, draw
from aimfair.data.images import Pixels
from aimfair.data.settings import AugmentSettings
from aimfair.training.settings import ModelSettings

Batch = tuple[npt.NDArray[np.int64], np.random.Generator]
"""int64 [B] indices of images, and the generator of their augmentation."""

_PIECE_BYTES = 2**20
"""Pixels that one thread processes at a time, few enough to stay in its cache."""


_VALUES_AT_ONCE = 2**20
"""Few enough to stay in the CPU's cache between the two passes."""


class Normalize:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] on a device: ``(value / 255 - mean) / std`` per channel.

    The result is channels last in memory, as stored, which convolutions on the CPU prefer; weights may stay contiguous.
    """

    def __init__(self, settings: ModelSettings, device: torch.device):
        mean = torch.tensor(settings.mean, dtype=torch.float64)
        std = torch.tensor(settings.std, dtype=torch.float64)
        self.device = device
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        if self.device.type == "cpu":
            out = empty_images(images.shape)
            self.into(out, images)
            return out.permute(0, 3, 1, 2)
        owned = np.require(images, requirements=["C", "W"])  # torch has no read-only tensors: memory maps are copied
        return self.on_device(torch.from_numpy(owned).to(self.device))

    def into(self, out: Tensor, images: npt.NDArray[np.uint8]) -> None:
        """The same on the CPU, into given memory.

        Args:
            out: float32 [B, H, W, 3], contiguous, written to.
            images: uint8 [B, H, W, 3].
        """
        count, height, width, _ = images.shape
        stored = torch.from_numpy(np.require(images, requirements=["C", "W"])).view(count, height, 3 * width)
        result = out.view(stored.shape)
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)  # of one row
        step = max(1, _VALUES_AT_ONCE // (3 * height * width))
        for start in range(0, count, step):
            piece = result[start : start + step].copy_(stored[start : start + step])
            torch.addcmul(shift, piece, scale, out=piece)

    def on_device(self, stored: Tensor) -> Tensor:
        """The same for values 0 to 255 [B, H, W, 3], of any dtype, already on the device."""
        values = stored.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift.view(3, 1, 1), values, self._scale.view(3, 1, 1))


def empty_images(shape: tuple[int, ...]) -> Tensor:
    """Uninitialised float32 of ``shape`` on the CPU, in huge pages where the system has them.

    A batch of large images takes tens of megabytes. Faulting in the small pages of an ordinary allocation of that size
    takes four times as long as normalising into it.
    """
    return torch.from_numpy(np.empty(shape, np.float32))


@dataclass(frozen=True)
class _Ahead:
    """A batch in preparation: its pending work, and how to take the result when that is done."""

    work: Sequence[Future[Any]]
    take: Callable[[], Tensor]


class Feed:
    """Gathers, augments and normalises images in the background, one batch ahead of its reader.

    On the CPU the threads of the feed share the images of a batch, each image processed by one of them: the number of
    threads does not change a bit of the result. On a GPU one thread gathers the stored bytes into pinned memory, and
    the rest runs there on a stream of its own. The two differ in crops alone, by rounding: see
    :func:`aimfair.data.augment.change_on_device`.

    A context manager; on exit no thread is left. Memory: two batches of float32, on a GPU also their bytes.

    Args:
        images: uint8 [N, H, W, 3].
        augment: random changes.
        normalize: its device is that of the batches.
        threads: on the CPU; None: as many as torch uses.
        ranks: each of several processes gets its share of every batch.
    """

    def __init__(
        self,
        images: Pixels,
        augment: AugmentSettings,
        normalize: Normalize,
        *,
        threads: int | None = None,
        ranks: Ranks = ALONE,
    ):
        self._images = images
        self._augment = augment
        self._normalize = normalize
        self._ranks = ranks
        self._stream: torch.cuda.Stream | None = None
        if normalize.device.type == "cuda":
            self._stream = torch.cuda.Stream(normalize.device)  # type: ignore[no-untyped-call]
        self._threads = 1 if self._stream else threads or torch.get_num_threads()
        self._buffers = [torch.empty(0), torch.empty(0)]
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._pool = _single_threaded(self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def batches(self, plan: Iterable[Batch]) -> Generator[Tensor]:
        """float32 [B, 3, H, W] for each batch of ``plan``, channels last in memory.

        A batch is valid until the next one is requested, which reuses its memory. For one reader, which has to close
        the generator if it stops early (:func:`contextlib.closing`).

        Raises:
            RuntimeError: the feed is not entered.
            Exception: an error in the background, where its batch would have been yielded.
        """
        if self._pool is None:
            raise RuntimeError("the feed is not entered")
        steps = enumerate(plan)
        ahead = self._start(self._pool, steps)
        try:
            while ahead is not None:
                for part in ahead.work:
                    part.result()
                batch = ahead.take()
                ahead = self._start(self._pool, steps)
                yield batch
        finally:
            if ahead is not None:  # nothing may still write to the buffers
                wait([part for part in ahead.work if not part.cancel()])

    def _start(self, pool: ThreadPoolExecutor, steps: Iterator[tuple[int, Batch]]) -> _Ahead | None:
        """The next batch; None after the last."""
        step = next(steps, None)
        if step is None:
            return None
        number, (indices, generator) = step
        height, width = self._images.shape[1:3]
        changes = draw(self._augment, len(indices), height, width, generator)
        if self._ranks.size > 1:
            share = self._ranks.share(len(indices))
            indices, changes = indices[share], changes.part(share)
        if self._stream is not None:
            made = pool.submit(self._make_on_gpu, self._stream, indices, changes)
            return _Ahead([made], lambda: _await_on_gpu(*made.result()))

        out = self._buffer(number % 2, len(indices))

        def make(some: slice) -> None:
            pixels = np.empty(out[some].shape, np.uint8)
            change_pixels(self._images, indices[some], changes.part(some), pixels)
            self._normalize.into(out[some], pixels)

        size = max(1, _PIECE_BYTES // math.prod(self._images.shape[1:]))
        pieces = [slice(start, start + size) for start in range(0, len(indices), size)]
        return _Ahead([pool.submit(make, some) for some in pieces], lambda: out.permute(0, 3, 1, 2))

    def _buffer(self, number: int, count: int) -> Tensor:
        """float32 [count, H, W, 3]: one of two buffers between which batches alternate."""
        if len(self._buffers[number]) < count:
            self._buffers[number] = empty_images((count, *self._images.shape[1:]))
        return self._buffers[number][:count]

    def _make_on_gpu(
        self, stream: torch.cuda.Stream, indices: npt.NDArray[np.int64], changes: Changes
    ) -> tuple[Tensor, torch.cuda.Event]:
        """The batch, and the event after which it may be read."""
        stored = torch.empty((len(indices), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        change_pixels(self._images, indices, Changes(), stored.numpy())
        with torch.cuda.stream(stream):
            pixels = stored.to(self._normalize.device, non_blocking=True)
            return self._normalize.on_device(change_on_device(pixels, changes)), stream.record_event()


def _await_on_gpu(batch: Tensor, ready: torch.cuda.Event) -> Tensor:
    """``batch`` for the current stream, which waits for it; the host does not."""
    reader = torch.cuda.current_stream(batch.device)
    reader.wait_event(ready)
    batch.record_stream(reader)  # the other stream may reuse its memory, but not before this one has read it
    return batch


def _work_alone() -> None:
    torch.get_num_threads()  # or torch would reset the number at its first operation in this thread
    torch.set_num_threads(1)


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """A pool of ``count`` threads in which torch is single-threaded: nested thread teams would contend."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "feed", initializer=_work_alone)
    together = threading.Barrier(count)
    wait([pool.submit(together.wait) for _ in range(count)])  # all have started
    torch.set_num_threads(before)  # new threads inherit what was set last, in any thread
    return pool
