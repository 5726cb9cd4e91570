"""Processes that share a job: what they must have in common, and how they hear of each other's end."""

import socket
import threading
import time
from contextlib import suppress
from importlib import import_module

import pytest
import torch
import torch.distributed as dist

from aimfair.base import ranks, watch
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupt
from aimfair.base.ranks import ALONE, OtherProcessError, Ranks
from aimfair.base.watch import Watch
from tests.base.together import in_threads


def test_what_differs_is_named_in_every_process() -> None:
    def body(here: Ranks) -> None:
        here.require_same({"torch": "2.13", "data": f"part {here.rank // 2}"}, "copy it")

    for end in in_threads(body, 3):
        assert isinstance(end, AimfairError)
        assert str(end) == "process 0 and process 2 differ in data: part 0, part 1; copy it"
    assert in_threads(lambda here: here.require_same({"data": "1"}, "copy it")) == [None, None]


def test_only_the_first_decides() -> None:
    calls = []

    def body(here: Ranks) -> None:
        decided = here.of_first(lambda: calls.append(here.rank) or "yes")
        assert decided == "yes"

    assert in_threads(body, 3) == [None] * 3
    assert calls == [0]


@pytest.mark.parametrize("count", [0, 1, 7, 9])
def test_shares_are_in_order_and_even(count: int) -> None:
    shares = Ranks(1, 4, dist.HashStore()).shares(count)
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert ALONE.share(count) == slice(0, count)


def test_tensors() -> None:
    def body(here: Ranks) -> None:
        values = torch.tensor([1.0, here.rank])
        assert here.sum(values).tolist() == [3.0, 3.0]
        part = torch.arange(here.rank * 3.0).view(-1, 3)
        assert here.concatenate(part, [0, 1, 2]).tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]

    assert in_threads(body, 3) == [None] * 3


def test_each_of_several_processes_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Ranks(1, 2, dist.HashStore())
    with pytest.raises(ConfigError, match="device: found cuda:1, expected auto, cpu or cuda"):
        two.device_name("cuda:1")
    assert two.device_name("cuda") == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert two.device_name("cuda") == "cuda:0"
    assert two.device_name("cpu") == "cpu"
    assert ALONE.device_name("cuda:1") == "cuda:1"


# -- processes that are lost ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SECONDS_BETWEEN_BEATS", 0.02)
    monkeypatch.setattr(watch, "_SECONDS_TO_BE_LOST", 0.3)
    monkeypatch.setattr(watch, "_SECONDS_TO_BE_LOST_SOON", 0.2)


@pytest.mark.usefixtures("quick")
def test_a_process_that_is_lost_is_named() -> None:
    store = dist.HashStore()
    Watch(1, 2, store)  # comes, and does not live on
    here = Ranks(0, 2, store, watch=Watch(0, 2, store))
    with pytest.raises(OtherProcessError, match=r"^process 1 of 2 \(.+, pid \d+\) is lost: it was killed"), here:
        here.gather("")


@pytest.mark.usefixtures("quick")
def test_a_failed_operation_names_the_process_that_was_killed() -> None:
    store = dist.HashStore()
    Watch(1, 2, store)
    here = Ranks(0, 2, store, watch=Watch(0, 2, store))
    with pytest.raises(OtherProcessError, match=r"process 1 of 2 .* is lost"), here.explained():
        raise RuntimeError("Connection closed by peer")


@pytest.mark.usefixtures("quick")
def test_a_process_that_hangs_is_named() -> None:
    store = dist.HashStore()
    others = [Watch(rank, 3, store) for rank in (1, 2)]
    others[0].done = 5
    here = Ranks(0, 3, store, watch=Watch(0, 3, store))
    for other in others:
        other.start(lambda: None)
    with pytest.raises(OtherProcessError, match=r"process 2 of 3 .* hangs: .* distributed.timeout"), here.explained():
        raise RuntimeError("Timed out waiting 600000ms for recv operation to complete")
    for other in others:
        other.stop()


@pytest.mark.usefixtures("quick")
def test_other_errors_stay_as_they_are() -> None:
    store = dist.HashStore()
    other, here = Watch(1, 2, store), Ranks(0, 2, store, watch=Watch(0, 2, store))
    other.start(lambda: None)
    with pytest.raises(RuntimeError, match="sizes must match"), here.explained():
        raise RuntimeError("sizes must match")
    other.stop()


@pytest.mark.usefixtures("quick")
def test_a_process_that_has_left_is_not_missed() -> None:
    store = dist.HashStore()
    other = Ranks(1, 2, store, watch=Watch(1, 2, store))
    here = Ranks(0, 2, store, watch=Watch(0, 2, store))

    def leave() -> None:
        with other:
            other.meet()

    thread = threading.Thread(target=leave)
    thread.start()
    with here:
        here.meet()
        thread.join()
        time.sleep(0.5)
        assert here._watch is not None
        assert here._watch.lost() is None


@pytest.mark.usefixtures("quick")
def test_a_process_leaves_the_store_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that Python ends inside the store aborts the process."""
    here, asked = Watch(0, 1, dist.HashStore()), threading.Event()

    def look() -> None:
        asked.set()
        time.sleep(0.3)  # of a store that is slow to answer

    monkeypatch.setattr(here, "_look", look)
    here.start(lambda: None)
    assert asked.wait(10)
    here.stop()
    assert not here._thread.is_alive()


@pytest.mark.usefixtures("quick")
def test_a_process_that_waits_where_nothing_ends_it_is_ended(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    store, ends = dist.HashStore(), []
    ended = threading.Event()
    monkeypatch.setattr(watch, "_SECONDS_TO_END", 0.1)
    monkeypatch.setattr(watch.os, "_exit", lambda code: (ends.append(code), ended.set()))
    Watch(1, 2, store)
    with Ranks(0, 2, store, watch=Watch(0, 2, store)):
        assert ended.wait(10)
        store.set("left/1", "")
    assert ends[0] == 1
    assert "error: process 1 of 2" in capfd.readouterr().err


@pytest.mark.parametrize("error", [ConfigError("train.lr: found 0"), AimfairError("a full disk"), None])
def test_restarted_processes_end_at_once_where_a_setting_cannot_be_used(
    error: AimfairError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = dist.HashStore()
    for rank in (1, 0):  # without an error process 0 leaves last
        with suppress(AimfairError), Ranks(rank, 2, dist.PrefixStore("aimfair/2", store)):
            if error is not None:
                raise error

    def go_on(*_: object) -> None:
        raise InterruptedError("went on")

    module = import_module("torch.distributed.rendezvous")  # torch.distributed has a function of that name, too
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    monkeypatch.setattr(ranks, "Watch", go_on)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    with pytest.raises((ConfigError, InterruptedError)) as end:
        Ranks.join(Interrupt())
    assert str(end.value) == ("train.lr: found 0" if isinstance(error, ConfigError) else "went on")


@pytest.mark.slow  # torch waits for two seconds at least
def test_an_address_that_nobody_answers_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(ranks, "_SECONDS_TO_JOIN", 1)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)
    with pytest.raises(AimfairError, match=r"^WORLD_SIZE is 2, but the processes cannot find each other: ") as found:
        Ranks.join(Interrupt())
    assert "\n" not in str(found.value)
