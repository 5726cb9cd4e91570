"""The log and the progress of another process."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from aimfair.base.log import Log
from aimfair.base.progress import Progress
from aimfair.cluster import relay
from aimfair.cluster.pool import Message
from aimfair.cluster.relay import RelayedLog, RelayedProgress, Shown


def work(send: Callable[[Message], None]) -> None:
    log, progress = RelayedLog(send), RelayedProgress(send)
    log("epoch", loss=0.5)
    log.tell("a note")
    log.warn("a warning", step="a")
    with progress.task("outer", 3) as task:
        task.advance(2, "half")
        with progress.task("inner", 1) as inner:
            inner.advance()
        task.advance()
    progress.say("said")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "log.jsonl", show=lambda _: None)
    yield log
    log.close()


def test_it_is_written_and_shown_as_here(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_SECONDS_BETWEEN_MESSAGES", 0.0)
    stream = io.StringIO()
    shown = Shown(log, Progress(console=Console(file=stream, force_terminal=True, width=100)))
    work(shown.take)
    shown.close()
    for part in ("outer", "3/3", "half", "inner", "1/1", "said"):
        assert part in stream.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["epoch", "note", "warning"]
    assert (lines[0]["loss"], lines[2]["step"]) == (0.5, "a")


def test_few_messages_tell_of_many_steps() -> None:
    sent: list[Message] = []
    with RelayedProgress(sent.append).task("many", 10_000) as task:
        for _ in range(10_000):
            task.advance()
    assert sent[0] == ("begin", 0, "many", 10_000, 0)
    assert sent[-1] == ("end", 0)
    assert len(sent) < 10
    assert sum(message[2] for message in sent[1:-1]) == 10_000


def test_lost_messages_cost_their_part_of_the_progress_and_no_more(log: Log) -> None:
    messages: list[Message] = []
    work(messages.append)
    for lost in range(len(messages)):
        shown = Shown(log, Progress(quiet=True))
        for message in [*messages[:lost], *messages[lost + 1 :]]:
            shown.take(message)
        shown.close()
