"""From the sampler to the disk while the sampler goes on: reduce, look at, encode, write, record."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from aimfair.base.interrupt import Interrupted
from aimfair.generation.manifest import Outcome

_THREADS = 4
_BATCHES = 3  # that wait for their files or are being written; with the next one more, all that is held in memory


class Writer:
    """A bounded queue before threads that write images, and one that records what they wrote, batch after batch.

    To be entered. At the end of the body, and when it was interrupted, everything is on disk; after an error, batches
    that no thread has begun are given up, and none is recorded that comes after one that was not.

    Args:
        record: of the outcomes of a batch, when its files are written. Called by one thread, in the batches' order.
        done: of the same outcomes, in the thread that puts and at a later time.

    Attributes:
        stalled: seconds that :meth:`put` and the end waited for the threads.
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
        """Adds a batch, a function for each of its images; waits while too many are there.

        Raises:
            Exception: what a thread raised, of this batch or of one before.
        """
        images = [self._encoders.submit(one) for one in work]
        self._batches.append(self._recorder.submit(self._finish, images))
        self._wait(_BATCHES)

    def _finish(self, images: Sequence[Future[Outcome]]) -> list[Outcome]:
        if self._failure is not None:  # a failed record may have left half a line, which must stay the last
            raise self._failure
        try:
            outcomes = [image.result() for image in images]
            self._record(outcomes)
        except BaseException as error:
            self._failure = error
            raise
        return outcomes

    def _wait(self, most: int) -> None:
        """Until at most so many batches are not recorded; takes away all that are, and raises what they raised."""
        while self._batches and (len(self._batches) > most or self._batches[0].done()):
            start = time.monotonic()
            outcomes = self._batches[0].result()
            self.stalled += time.monotonic() - start
            self._batches.popleft()
            self._done(outcomes)
