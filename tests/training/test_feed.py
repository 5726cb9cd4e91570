import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from aimfair.data.augment import change_on_device, draw
from aimfair.data.settings import AugmentSettings
from aimfair.training import feed as module
from aimfair.training.feed import Batch, Feed, Normalize
from aimfair.training.settings import ModelSettings

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 12, 12, 3), dtype=np.uint8)
AUGMENT = AugmentSettings(shift=1, flip=True, crop_scale=(0.2, 1.0))
MODEL = ModelSettings(config={"model_type": "resnet"})
CPU = torch.device("cpu")


def plan(sizes: tuple[int, ...] = (20, 19, 11), seed: int = 0) -> list[Batch]:
    order = np.random.default_rng(seed).permutation(len(IMAGES))
    parts = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [(indices, np.random.default_rng([seed, step])) for step, indices in enumerate(parts)]


def feed(augment: AugmentSettings = AUGMENT, device: torch.device = CPU, threads: int | None = None) -> Feed:
    return Feed(IMAGES, augment, Normalize(MODEL, device), threads=threads)


def read(some: Feed, batches: list[Batch]) -> list[torch.Tensor]:
    with some:
        return [batch.cpu().clone(memory_format=torch.preserve_format) for batch in some.batches(batches)]


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert feed_threads() == []


@pytest.mark.parametrize("augment", [AugmentSettings(), AUGMENT], ids=["unchanged", "all"])
def test_batches_are_those_of_the_plan(augment: AugmentSettings, device: torch.device) -> None:
    batches = read(feed(augment, device), plan())
    assert [len(batch) for batch in batches] == [20, 19, 11]
    for batch, (indices, generator) in zip(batches, plan(), strict=True):
        changes = draw(augment, len(indices), 12, 12, generator)
        expected = change_on_device(torch.from_numpy(IMAGES[indices]), changes).permute(0, 3, 1, 2) / 127.5 - 1
        atol = 1e-6 if augment == AugmentSettings() else 1.1 / 127.5
        torch.testing.assert_close(batch, expected.float(), atol=atol, rtol=0)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("piece_bytes", [1, 1000, 2**20])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_pieces_change_no_bit(threads: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(feed(threads=2), plan())
    monkeypatch.setattr(module, "_PIECE_BYTES", piece_bytes)
    found = read(feed(threads=threads), plan())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_it_begins_in_the_middle_of_an_epoch_as_if_it_had_not_stopped() -> None:
    whole, rest = read(feed(), plan()), read(feed(), plan()[1:])
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_a_batch_stays_until_the_next_is_asked_for() -> None:
    with feed() as some:
        for batch in some.batches(plan()):
            before = batch.clone()
            time.sleep(0.01)  # the next one is being made
            assert torch.equal(batch, before)


def test_exactly_one_batch_is_made_ahead() -> None:
    asked: list[int] = []

    def watched() -> Iterator[Batch]:
        for number, batch in enumerate(plan()):
            asked.append(number)
            yield batch

    with feed() as some:
        batches = some.batches(watched())
        assert asked == []
        next(batches)
        assert asked == [0, 1]
        next(batches)
        assert asked == [0, 1, 2]
        batches.close()


def test_the_next_batch_is_made_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Semaphore(0)

    def change_pixels(*arguments: object) -> None:
        made.release()

    monkeypatch.setattr(module, "change_pixels", change_pixels)
    with feed() as some, closing(some.batches(plan())) as batches:
        next(batches)
        assert made.acquire(timeout=30)
        assert made.acquire(timeout=30)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_where_its_batch_would(threads: int) -> None:
    batches = plan()
    batches[1][0][3] = len(IMAGES)  # no such image
    with feed(threads=threads) as some:
        reader = some.batches(batches)
        next(reader)
        with pytest.raises(IndexError):
            next(reader)
        assert len(list(some.batches(plan()))) == 3  # it can be used again


def test_closing_waits_for_whoever_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second epoch may write to the same memory at once."""
    working = 0

    def change_pixels(*arguments: object) -> None:
        nonlocal working
        working += 1
        time.sleep(0.05)
        working -= 1

    monkeypatch.setattr(module, "change_pixels", change_pixels)
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    with feed(threads=1) as some:
        with closing(some.batches(plan((2, 40)))) as batches:
            next(batches)
        assert working == 0


def test_threads_end_with_it_also_when_it_is_stopped() -> None:
    some = feed(threads=2)

    def stopped() -> None:
        with some:
            assert len(feed_threads()) == 2
            for _ in some.batches(plan()):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert feed_threads() == []
    with pytest.raises(RuntimeError, match="not entered"):
        next(some.batches(plan()))


def test_a_reader_may_outlive_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that an error's traceback holds. What was not begun when the feed ended never is."""
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    with feed(threads=1) as some:
        reader = some.batches(plan((2, 40)))
        next(reader)
    reader.close()


def test_torch_works_with_as_many_threads_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with one in each thread of the feed."""
    inside: set[int] = set()
    monkeypatch.setattr(module, "change_pixels", lambda *_: inside.add(torch.get_num_threads()))

    def of_a_new_thread() -> int:
        counts: list[int] = []
        thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return counts[0]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with feed() as some:
            assert len(feed_threads()) == 3
            list(some.batches(plan()))
            assert (torch.get_num_threads(), of_a_new_thread(), inside) == (3, 3, {1})
    finally:
        torch.set_num_threads(before)


def test_batches_may_differ_in_size() -> None:
    sizes = (3, 4, 10, 1, 20)
    batches = read(feed(), plan(sizes))
    assert tuple(map(len, batches)) == sizes
    assert read(feed(), []) == []
