"""The one place that times and measures memory; a bench supplies a :class:`Case` and nothing else.

Protocol of a case:

1. our first call, with its peak extra memory, then the check that it did the work (a broken kernel is never timed);
2. a first call of every rival, with its peak extra memory;
3. rounds of (copy, rival 1, rival 2, ..., ours), where copy is a large ``copy_``, the yardstick of bandwidth. Bandwidth
   drifts on shared machines, so only times of one round are compared: a ratio is the median over rounds of
   (rival / ours). The number of rounds follows from a time budget; slow rivals take part in the first rounds only.

On CUDA a call is timed by events on the current stream, on a CPU by ``time.perf_counter``. How much of the processors
others took meanwhile is recorded with each case: rivals with a barrier per tensor suffer most from company.

On small lists a GPU waits for the host. There every call that can be captured is timed a second time as a CUDA graph,
in the same rounds: what a training loop in a graph sees, and the kernels alone.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

MIN_ROUNDS = 5
MIN_RIVAL_ROUNDS = 3
COPY_ROUNDS = 5
MAX_ROUNDS = 100

SLOW_SECONDS = 0.25
"""A call slower than this needs no second one to be estimated."""

COPY_ELEMENTS = 1 << 26
"""float32 elements of the yardstick: far more than a cache holds."""

Call = Callable[[], object]


@dataclass
class Rival:
    """A public way to do the same work. ``masked`` says that it leaves unselected elements alone, as ours does.

    ``capturable``: into a CUDA graph, without another meaning of its replays.
    """

    name: str
    call: Call
    masked: bool = False
    capturable: bool = True


@dataclass
class Case:
    work: str
    tensors: str
    numel: int
    floor_bytes: int
    """That any way must read and write; 0 where arithmetic decides."""
    ours: Call
    check: Call
    """Raises unless the first call of ``ours`` left the right result."""
    rivals: list[Rival]
    capturable: bool = True
    """Whether ``ours`` can be captured into a CUDA graph; if not, its rivals are not captured either."""
    density: float | None = None
    pattern: str = ""
    state: str = ""
    accumulator_bytes: int = 0
    """What ``ours`` reads, where the bar on extra memory is relative to it."""
    items: int | None = None
    """Images or prompts that a call makes, where their rate is of interest."""


@dataclass
class RivalResult:
    name: str
    masked: bool
    seconds: float
    ratio: float
    """Median over rounds of this rival's time over ours."""
    rounds: int
    extra_bytes: int | None
    graph_seconds: float | None = None
    """Of a replay as a CUDA graph; None if that was not timed."""
    graph_ratio: float | None = None
    """Median over rounds of its replay's time over that of ours."""


@dataclass
class Result:
    work: str
    tensors: str
    numel: int
    density: float | None
    pattern: str
    state: str
    seconds: float
    rounds: int
    gb_per_s: float
    copy_gb_per_s: float
    """Bytes read and written by the yardstick, in the rounds of this case."""
    copy_share: float
    floor_bytes: int
    accumulator_bytes: int
    extra_bytes: int | None
    others_share: float | None
    """Of all processors, taken by other processes and other guests of the host while this case ran."""
    graph_seconds: float | None = None
    """Of a replay as a CUDA graph; None if that was not timed."""
    items: int | None = None
    rivals: list[RivalResult] = field(default_factory=list)

    def fastest(self, *, masked: bool = False) -> RivalResult | None:
        """The fastest rival that respects the mask, or that does not."""
        return min((r for r in self.rivals if r.masked == masked), key=lambda r: r.seconds, default=None)

    def rival(self, name: str) -> RivalResult | None:
        """By name; without one, the fastest that touches every element."""
        return next((r for r in self.rivals if r.name == name), None) if name else self.fastest()

    def judged_rival(self, name: str) -> RivalResult | None:
        """The same; without a name, by the times of replays as CUDA graphs where there are any."""
        replayed = [r for r in self.rivals if r.graph_seconds is not None and not r.masked]
        if name or not replayed:
            return self.rival(name)
        return min(replayed, key=lambda r: r.graph_seconds or 0.0)


class Clock:
    """Times calls on a device.

    It is also the timer of pytest-benchmark: a clock that only runs while a call is timed, so that the rounds
    pytest-benchmark records are the very measurements made here, on a GPU too.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._elapsed = 0.0

    def now(self) -> float:
        """Seconds of timed work so far."""
        return self._elapsed

    def time(self, call: Call) -> float:
        """Seconds that ``call`` takes, until its work on the device is done."""
        seconds = self._time_cuda(call) if self._cuda else self._time_cpu(call)
        self._elapsed += seconds
        return seconds

    def _time_cpu(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def _time_cuda(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def captured(call: Call) -> Call:
    """A replay of ``call``, which has run before, as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak_extra_bytes(call: Call, device: torch.device) -> int | None:
    """Highest memory use during ``call`` over the use before it; None where the system cannot tell.

    On CUDA that of torch's allocator. On Linux that of the whole process: the high-water mark of resident memory, which
    a write to ``clear_refs`` resets, so that memory taken by any allocator counts. Pages already held are given back
    first, or their reuse would go unseen. Figures below a megabyte are noise.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        call()
        return None
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before, files_before = _resident_bytes("VmRSS"), _resident_bytes("RssFile")
    call()
    loaded = _resident_bytes("RssFile") - files_before  # pages of code touched for the first time
    return max(0, _resident_bytes("VmHWM") - before - loaded)


def _resident_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


class OthersLoad:
    """Processor time that others take, from its making on."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float | None:
        """Of all processors since the start; None where the system cannot tell."""
        before, now = self._before, self._now()
        if before is None or now is None:
            return None
        wall, own, everyone = (n - b for n, b in zip(now, before, strict=True))
        return max(0.0, (everyone - own) / (wall * (os.cpu_count() or 1)))

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds: wall clock, this process and its workers, the whole machine."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        with stat.open() as lines:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, lines.readline().split()[1:9])
        everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time() + _seconds_of_children(), everyone


def _seconds_of_children() -> float:
    """Of processor time taken by this process's workers, those that have ended included; Linux only."""
    ticks = 0
    for child in multiprocessing.active_children():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
    ended = os.times()
    return ended.children_user + ended.children_system + ticks / os.sysconf("SC_CLK_TCK")


class Runner:
    """Runs cases on one device and keeps their results."""

    def __init__(self, device: torch.device, *, budget: float, copy_elements: int = COPY_ELEMENTS):
        """``budget``: seconds of measuring for each way of a case."""
        self.device = device
        self.clock = Clock(device)
        self.results: list[Result] = []
        self._capture = captured if device.type == "cuda" else None
        self._budget = budget
        self._copy_elements = copy_elements

    @cached_property
    def _copy(self) -> Call:
        source = torch.ones(self._copy_elements, device=self.device)
        target = torch.zeros(self._copy_elements, device=self.device)
        return lambda: target.copy_(source)

    def run(self, case: Case, benchmark: BenchmarkFixture) -> Result:
        """Measures ``case`` through pytest-benchmark's fixture ``benchmark``, whose timer must be :attr:`clock`."""
        gc.collect()
        extra = peak_extra_bytes(case.ours, self.device)
        case.check()
        extras, estimates = zip(*(self._warm_up(rival.call) for rival in case.rivals), strict=True)
        rounds = self._rounds(min(estimates) + self.clock.time(case.ours), MIN_ROUNDS)
        rival_rounds = [min(rounds, self._rounds(estimate, MIN_RIVAL_ROUNDS)) for estimate in estimates]
        self._copy()
        replay, rival_replays = self._replays(case)

        ours: list[float] = []
        copies: list[float] = []
        times: list[list[float]] = [[] for _ in case.rivals]
        graph_ours: list[float] = []
        graph_times: list[list[float]] = [[] for _ in case.rivals]

        def time_others() -> None:
            # Ours twice, but not one right after the other: the second would find its data in the cache.
            if replay:
                graph_ours.append(self.clock.time(replay))
            if len(copies) < COPY_ROUNDS:
                copies.append(self.clock.time(self._copy))
            for calls, all_seconds in (([rival.call for rival in case.rivals], times), (rival_replays, graph_times)):
                for call, wanted, seconds in zip(calls, rival_rounds, all_seconds, strict=True):
                    if call and len(seconds) < wanted:
                        seconds.append(self.clock.time(call))

        load = OthersLoad()
        benchmark.pedantic(lambda: ours.append(self.clock.time(case.ours)), setup=time_others, rounds=rounds)
        others = load.share()

        seconds = statistics.median(ours)
        copy_bytes = 2 * 4 * self._copy_elements
        result = Result(
            work=case.work,
            tensors=case.tensors,
            numel=case.numel,
            density=case.density,
            pattern=case.pattern,
            state=case.state,
            seconds=seconds,
            rounds=len(ours),
            gb_per_s=case.floor_bytes / seconds / 1e9,
            copy_gb_per_s=copy_bytes / statistics.median(copies) / 1e9,
            copy_share=case.floor_bytes / copy_bytes * median_ratio(copies, ours),
            floor_bytes=case.floor_bytes,
            accumulator_bytes=case.accumulator_bytes,
            extra_bytes=extra,
            others_share=others,
            graph_seconds=statistics.median(graph_ours) if graph_ours else None,
            items=case.items,
            rivals=[
                RivalResult(
                    name=rival.name,
                    masked=rival.masked,
                    seconds=statistics.median(taken),
                    ratio=median_ratio(taken, ours),
                    rounds=len(taken),
                    extra_bytes=rival_extra,
                    graph_seconds=statistics.median(graph_taken) if graph_taken else None,
                    graph_ratio=median_ratio(graph_taken, graph_ours) if graph_taken else None,
                )
                for rival, taken, graph_taken, rival_extra in zip(case.rivals, times, graph_times, extras, strict=True)
            ],
        )
        self.results.append(result)
        benchmark.extra_info.update(as_record(result))
        return result

    def _replays(self, case: Case) -> tuple[Call | None, list[Call | None]]:
        """Those of our call and of each rival's, where they can be had."""
        capture = self._capture
        if capture is None or not case.capturable:
            return None, [None] * len(case.rivals)
        return capture(case.ours), [capture(rival.call) if rival.capturable else None for rival in case.rivals]

    def _warm_up(self, call: Call) -> tuple[int | None, float]:
        """Peak extra memory of the first call, and an estimate of the seconds of a later one."""
        seconds: list[float] = []
        extra = peak_extra_bytes(lambda: seconds.append(self.clock.time(call)), self.device)
        if seconds[0] < SLOW_SECONDS:  # the first call may pay for page faults and lazy loading
            seconds.append(self.clock.time(call))
        return extra, seconds[-1]

    def _rounds(self, seconds: float, least: int) -> int:
        return max(least, min(MAX_ROUNDS, int(self._budget / seconds)))


def median_ratio(theirs: list[float], ours: list[float]) -> float:
    """Over the rounds in which both took part: the first ones."""
    return statistics.median(other / own for other, own in zip(theirs, ours, strict=False))


def as_record(result: Result) -> dict[str, Any]:
    """``result`` for JSON, times in milliseconds."""
    record = vars(result) | {"rivals": [dict(vars(rival)) for rival in result.rivals]}
    for entry in (record, *record["rivals"]):
        for name in ("seconds", "graph_seconds"):
            seconds = entry.pop(name)
            entry[name.replace("seconds", "ms")] = None if seconds is None else seconds * 1e3
    return record
