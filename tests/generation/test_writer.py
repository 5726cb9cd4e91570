"""The threads behind the sampler, and the lines they leave when the disk is full."""

import resource
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimfair.base.lines import as_lines
from aimfair.generation.manifest import Outcome, Shards
from aimfair.generation.writer import Writer


def outcome(image: int) -> Outcome:
    return Outcome(image=image, attempt=0, digest=f"{image:012x}", hash=None, reason=None)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    shards = Shards(tmp_path)
    shards.replace([])
    return shards


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: what is written at once is cut there, and more refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("rank", [0, 1])  # a file that is there, and one that is not yet
def test_lines_that_do_not_fit_leave_no_part(shards: Shards, rank: int) -> None:
    before = [outcome(0), outcome(1)] if rank == 0 else []
    shards.replace(before)
    with files_end_at(len(as_lines(before)) + 20), pytest.raises(OSError, match="File too large"):
        shards.append(rank, [outcome(2), outcome(3)])
    assert (shards.folder / f"{rank}.jsonl").read_text() == as_lines(before)
    shards.append(rank, [outcome(4)])
    assert shards.read() == ([*before, outcome(4)], 0)


@pytest.mark.parametrize("fails", ["record", "image"])
def test_nothing_is_recorded_after_a_failure(fails: str) -> None:
    queued, recorded, done = threading.Event(), list[int](), list[int]()

    def make(image: int) -> Outcome:
        if image == 1:
            queued.wait(10)
            if fails == "image":
                raise OSError("no space left: image")
        return outcome(image)

    def record(batch: Sequence[Outcome]) -> None:
        if batch[0].image == 1:
            raise OSError("no space left: record")
        recorded.append(batch[0].image)

    writer = Writer(record, lambda batch: done.append(batch[0].image))
    with pytest.raises(OSError, match=f"no space left: {fails}"), writer:  # noqa: PT012 - the end of the body raises
        for image in range(4):
            writer.put([lambda image=image: make(image)])  # type: ignore[misc]
        waiting = list(writer._batches)
        queued.set()
        wait(waiting, 10)
    assert recorded == done == [0]
