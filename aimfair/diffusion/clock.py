"""Where the time of sampling goes."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ENCODER, DENOISER, SCHEDULER, DECODER, COPIES = PARTS = (
    "text_encoder",
    "denoiser",
    "scheduler",
    "decoder",
    "copies",
)
"""The parts: embedding prompts; the denoiser; the rest of the loop over steps, which is guidance and scheduler; the
decoder; noise to the device and pixels from there."""


class Clock:
    """Adds up the seconds of each part, on a GPU by events, so that nothing waits for a measurement.

    A part that begins within another is not counted in that one.

    Args:
        device: where the parts run.

    Attributes:
        seconds: part -> seconds since the beginning. On a GPU, up to the last :meth:`settle`.
    """

    def __init__(self, device: torch.device):
        self.seconds: Counter[str] = Counter()
        self._events = device.type == "cuda"
        self._device = device
        self._open: list[tuple[str, _Moment]] = []  # begun, not ended; the outermost first
        self._ended: list[tuple[str, str | None, _Moment, _Moment]] = []  # with the part around it

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts the time inside."""
        depth = len(self._open)
        self.begin(part)
        try:
            yield
        except BaseException:
            del self._open[depth:]  # hooks of modules that failed have not ended their parts
            raise
        self.end()

    def begin(self, part: str) -> None:
        """From now on, up to :meth:`end`."""
        self._open.append((part, self._now()))

    def end(self) -> None:
        """Ends the part that began last."""
        part, began = self._open.pop()
        around = self._open[-1][0] if self._open else None
        self._ended.append((part, around, began, self._now()))
        if not self._events:
            self.settle()

    def settle(self) -> None:
        """Reads the events; call it when the device has finished, such as after a copy from there."""
        for part, around, began, ended in self._ended:
            seconds = _between(began, ended)
            self.seconds[part] += seconds  # type: ignore[assignment]  # counters of floats
            if around is not None:
                self.seconds[around] -= seconds  # type: ignore[assignment]
        self._ended.clear()

    def _now(self) -> "_Moment":
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


_Moment = float | torch.cuda.Event


def _between(began: _Moment, ended: _Moment) -> float:
    if isinstance(began, float):
        assert isinstance(ended, float)
        return ended - began
    assert not isinstance(ended, float)
    return float(began.elapsed_time(ended)) / 1000
