"""What the benches make of their measurements, replays of CUDA graphs included, which stand-ins replace here."""

import json
import multiprocessing
import time
from collections.abc import Callable

import pytest
import torch

from bench import harness, report, targets
from bench.harness import Case, Rival, Runner


class Pedantic:
    """The part of pytest-benchmark's fixture that the harness uses."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}

    def pedantic(self, function: Callable[[], object], *, setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            setup()
            function()


MILLISECONDS = {"ours": 2.0, "fused": 4.0, "foreach": 9.0, "where": 30.0, "copy": 1.0}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """On a clock that every call moves by what is said above, and by a tenth of it if it is a replay."""
    runner = Runner(torch.device("cpu"), budget=0.05, copy_elements=1000)
    durations: dict[object, float] = {}

    def duration(call: Callable[[], object]) -> float:
        name = call()
        return durations.get(name, MILLISECONDS["copy"] if isinstance(name, torch.Tensor) else 0.0) / 1e3

    for name, milliseconds in MILLISECONDS.items():
        durations |= {name: milliseconds, f"replay of {name}": milliseconds / 10}
    monkeypatch.setattr(runner.clock, "time", duration)
    return runner


def case(*, capturable: bool = True) -> Case:
    return Case(
        work=targets.ADAMW, tensors="flat 1e8", numel=1000, floor_bytes=50_000_000, ours=lambda: "ours",
        check=lambda: None, density=0.1, pattern="random", state="dense", capturable=capturable,
        rivals=[
            Rival("fused", lambda: "fused"),
            Rival("foreach", lambda: "foreach", capturable=False),
            Rival(targets.CLONE_FUSED_WHERE, lambda: "where", masked=True),
        ],
    )  # fmt: skip


def replays(monkeypatch: pytest.MonkeyPatch, runner: Runner) -> None:
    monkeypatch.setattr(runner, "_capture", lambda call: lambda: f"replay of {call()}")


def test_without_graphs(runner):
    result = runner.run(case(), Pedantic())
    assert result.seconds == pytest.approx(2e-3)
    assert [rival.ratio for rival in result.rivals] == pytest.approx([2.0, 4.5, 15.0])
    assert result.graph_seconds is None
    assert all(rival.graph_seconds is None and rival.graph_ratio is None for rival in result.rivals)
    assert "graph" not in " ".join(report.lines(report.results_table([result], [])))


def test_replays_are_timed_next_to_calls(runner, monkeypatch):
    replays(monkeypatch, runner)
    result = runner.run(case(), Pedantic())
    assert result.seconds == pytest.approx(2e-3)
    assert result.graph_seconds == pytest.approx(0.2e-3)
    fused, foreach, where = result.rivals
    assert (fused.graph_seconds, fused.graph_ratio) == pytest.approx((0.4e-3, 2.0))
    assert (foreach.graph_seconds, foreach.graph_ratio) == (None, None)
    assert where.graph_ratio == pytest.approx(15.0)
    record = json.loads(json.dumps(harness.as_record(result)))
    assert (record["ms"], record["graph_ms"]) == pytest.approx((2.0, 0.2))
    assert [rival["graph_ms"] for rival in record["rivals"]] == [pytest.approx(0.4), None, pytest.approx(3.0)]


def test_what_waits_is_not_captured(runner, monkeypatch):
    replays(monkeypatch, runner)
    result = runner.run(case(capturable=False), Pedantic())
    assert result.graph_seconds is None
    assert all(rival.graph_seconds is None for rival in result.rivals)


@pytest.mark.parametrize(("cache_bytes", "marked"), [(60_000_000, "yes"), (40_000_000, "")])
def test_tables_of_a_gpu(runner, monkeypatch, cache_bytes, marked):
    replays(monkeypatch, runner)
    # On a busy machine the table has a word of its own.
    monkeypatch.setattr(harness.OthersLoad, "share", lambda _: None)
    result = runner.run(case(), Pedantic())
    judged = report.verdicts([result], "cuda")
    head, row = report.results_table([result], judged, cache_bytes)
    assert head[-4:] == ["graph ms", "rival graph ms", "ratio", "cache"]
    assert row[-4:] == ["0.2", "0.4 (fused)", "2.00", marked]
    rows = {line[0]: line for line in report.targets_table(judged)}
    assert rows["target"][-1] == "by calls"
    assert rows["10% random"][2:5] == ["1.6x", "2.4x", "2x"]
    assert rows["10% random"][-1] == "2x"
    assert rows["10% masked"][-2:] == ["aim", "15x"]


def test_a_gpu_is_judged_by_replays(runner, monkeypatch):
    """Which may say something else than calls, host included, and make another rival the fastest."""
    replays(monkeypatch, runner)
    measured = case()
    measured.rivals[1].capturable = True
    times = {"replay of ours": 0.1e-3, "replay of fused": 0.5e-3, "replay of foreach": 0.3e-3}
    ordinary = runner.clock.time
    monkeypatch.setattr(runner.clock, "time", lambda call: times.get(call()) or ordinary(call))
    rows = {line[0]: line for line in report.targets_table(report.verdicts([runner.run(measured, Pedantic())], "cuda"))}
    assert rows["10% random"][4] == "3x"
    assert rows["10% random"][6].startswith("aim")
    assert rows["10% random"][7] == "4.5x"  # of the calls of the same rival


def test_time_beyond_that_of_the_bytes(runner):
    """Of select on ResNet-50: 2 ms less those in which 50 MB are copied."""
    measured = case(capturable=False)
    measured.work, measured.tensors, measured.pattern = targets.SELECT_DIFFERENCE, "ResNet-50", "top-k"
    measured.state, measured.accumulator_bytes = "", 50_000_000
    result = runner.run(measured, Pedantic())
    result.copy_gb_per_s, result.others_share = 50.0, None
    rows = {line[0]: line for line in report.targets_table(report.verdicts([result], "cuda"))}
    assert rows["select, launches and waiting"][2:7] == ["60 us", "60 us", "1e+03 us", "ResNet-50", "NO"]
    result.seconds = 1.05e-3
    rows = {line[0]: line for line in report.targets_table(report.verdicts([result], "cuda"))}
    assert rows["select, launches and waiting"][4:7] == ["50 us", "ResNet-50", "aim"]


def test_time_of_workers_counts_as_our_own() -> None:
    """Of running processes, and of those that have ended."""
    before = harness._seconds_of_children()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(_work)
        during = harness._seconds_of_children() - before
    assert during > 0.05
    assert during <= harness._seconds_of_children() - before + 0.02


def _work() -> None:
    while time.process_time() < 0.1:
        pass
