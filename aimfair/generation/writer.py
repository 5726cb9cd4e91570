"""From pixels to files and records, in threads that run beside the sampler."""

import io
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.interrupt import Interrupted
from aimfair.generation.manifest import Format, Outcome

_THREADS = 4
_BATCHES = 3  # waiting or being written; with the one being sampled, all batches in memory

# The fastest lossless options that do not cost much space; docs/generation.md has the measurements.
_OPTIONS: dict[Format, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 1},
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}


def encode(pixels: npt.NDArray[np.uint8], image_format: Format) -> bytes:
    """uint8 [H, W, 3], without loss: the same bytes for the same pixels and version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **_OPTIONS[image_format])
    return buffer.getvalue()


class Writer:
    """A bounded queue of batches: threads write their images, and one records the outcomes, batch after batch.

    A context manager. At its end, and after an interrupt, everything is on disk; after an error, batches that no thread
    has begun are dropped, and no batch is recorded after one that was not.

    Args:
        record: called with the outcomes of a batch once its files are written, by one thread, in the order of batches.
        done: called with the same outcomes later, by the thread that calls :meth:`put`.

    Attributes:
        stalled: seconds that :meth:`put` and the end of the context waited for the threads.
    """

    def __init__(self, record: Callable[[Sequence[Outcome]], None], done: Callable[[Sequence[Outcome]], None]):
        self._record, self._done = record, done
        self._encoders = ThreadPoolExecutor(_THREADS, thread_name_prefix="encoder")
        self._recorder = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._batches: deque[Future[list[Outcome]]] = deque()
        self._failure: BaseException | None = None  # the first of a batch; the recorder's own
        self.stalled = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None or isinstance(error, Interrupted):
                self._wait(0)
        finally:
            self._encoders.shutdown(cancel_futures=True)
            self._recorder.shutdown(cancel_futures=True)

    def put(self, work: Sequence[Callable[[], Outcome]]) -> None:
        """Adds a batch, one function for each image; waits while the queue is full.

        Raises:
            Exception: raised by a thread, for this batch or an earlier one.
        """
        images = [self._encoders.submit(one) for one in work]
        self._batches.append(self._recorder.submit(self._finish, images))
        self._wait(_BATCHES)

    def _finish(self, images: Sequence[Future[Outcome]]) -> list[Outcome]:
        if self._failure is not None:  # a failed record may have left a partial line, which must stay the last
            raise self._failure
        try:
            outcomes = [image.result() for image in images]
            self._record(outcomes)
        except BaseException as error:
            self._failure = error
            raise
        return outcomes

    def _wait(self, most: int) -> None:
        """Until at most ``most`` batches are not recorded; removes the recorded ones, raising their errors."""
        while self._batches and (len(self._batches) > most or self._batches[0].done()):
            start = time.monotonic()
            outcomes = self._batches[0].result()
            self.stalled += time.monotonic() - start
            self._batches.popleft()
            self._done(outcomes)
