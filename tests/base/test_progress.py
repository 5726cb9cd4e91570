"""Bars on a terminal, plain lines elsewhere, nothing when quiet."""

import io

import pytest
from rich.console import Console

from aimfair.base import progress as module
from aimfair.base.progress import SILENT, Progress


def plain(terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100), stream


def test_a_short_task_says_nothing_without_a_terminal():
    console, stream = plain()
    with Progress(console=console).task("train 100", total=10, done=4) as task:
        task.advance(6, note="loss 0.31")
    assert stream.getvalue() == ""


def test_a_line_a_minute_with_the_time_left(monkeypatch):
    console, stream = plain()
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress(console=console).task("generate", total=100, done=20) as task:
        for _ in range(80):
            now += 10
            task.advance()
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]  # without the time of day
    assert len(lines) == 13 + 1
    assert lines[0] == "generate: 26/100, about 12 min 20 s left"
    assert lines[-1] == "generate: 100/100 in 13 min 20 s"


def test_loading_does_not_count_as_work(monkeypatch):
    console, stream = plain()
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress(console=console).task("generate", total=100) as task:
        now += 600
        task.advance(10)
        now += 70
        task.advance(10)
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert lines[:2] == ["generate: 10/100", "generate: 20/100, about 9 min 20 s left"]  # 80 images of 7 s


def test_quiet_says_only_what_it_is_told_to_say():
    console, stream = plain()
    progress = Progress(quiet=True, console=console)
    with progress.task("train 100", total=10) as task:
        task.advance(10)
    assert stream.getvalue() == ""
    progress.say("warning: [b]this[/b]")
    assert stream.getvalue() == "warning: [b]this[/b]\n"


def test_a_line_for_each_finished_model_without_a_terminal(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    console, stream = plain()
    for _ in Progress(console=console).each(["full", "paper", "aimfair"], lambda name: f"finetune 100 {name}"):
        now += 60
    assert [line[9:] for line in stream.getvalue().splitlines()] == [
        "finetune 100 full: finished, 1 of 3, about 2 min 00 s left",
        "finetune 100 paper: finished, 2 of 3, about 1 min 00 s left",
        "finetune 100 aimfair: finished, 3 of 3 in 3 min 00 s",
    ]
    for progress in (Progress(quiet=True, console=console), Progress(console=plain(terminal=True)[0])):
        before = stream.getvalue()
        assert list(progress.each([1, 2], str)) == [1, 2]
        assert stream.getvalue() == before


def test_bars_on_a_terminal_with_one_inside_another():
    console, stream = plain(terminal=True)
    progress = Progress(console=console)
    with progress.task("[outer]", total=2) as outer:
        with progress.task("inner", total=3) as inner:
            inner.advance(3, note="[loss] 0.31")
        outer.advance(2)
    with progress.task("after", total=1) as after:
        after.advance()
    text = stream.getvalue()
    for part in ("[outer]", "2/2", "inner", "3/3", "[loss] 0.31", "after", "1/1"):
        assert part in text


def test_an_error_ends_the_bars():
    console, _ = plain(terminal=True)
    progress = Progress(console=console)

    def fail() -> None:
        with progress.task("train", total=2):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with progress.task("train", total=2) as task:  # rich refuses a second live display
        task.advance()


def test_the_silent_task():
    SILENT.advance(3, note="x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (59.94, "59.9 s"), (303.4, "5 min 03 s"), (7805, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert module.duration(seconds) == text
