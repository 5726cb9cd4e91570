"""Locks on a file system of one machine, and leases where other machines share it."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from aimfair.base import lease
from aimfair.base.interrupt import NEVER
from aimfair.base.lock import Lock, holder, locked, try_lock

OTHER = "77 on elsewhere"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that other machines share, and faster leases."""
    monkeypatch.setattr(lease, "is_shared", lambda _: True)
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "EXPIRES", 1.0)
    monkeypatch.setattr(lease, "_SETTLES", 0.02)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def of_another_machine(path: Path) -> Path:
    """A lease that some process of it left there."""
    lease._write(path.with_name(f"{path.name}.lease"), f"{OTHER}\nanother boot\ntoken\n", 0, os.O_CREAT)
    return path.with_name(f"{path.name}.lease")


@pytest.fixture
def process() -> Iterator[Callable[[Callable[[], None]], multiprocessing.Process]]:
    """Calls a function in another process, a copy of this one."""
    started: list[multiprocessing.Process] = []

    def start(function: Callable[[], None]) -> multiprocessing.Process:
        started.append(multiprocessing.get_context("fork").Process(target=function))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.join()


def hold(path: Path, ready: Connection) -> None:
    lock = try_lock(path)
    ready.send(None if lock is None else lease.this_process())
    time.sleep(60)


def test_on_one_machine_there_is_no_lease(tmp_path: Path) -> None:
    assert not lease.is_shared(tmp_path)
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    assert holder(tmp_path / "lock") == f"{os.getpid()} on {os.uname().nodename}"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    lock.release()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)],
)
def test_which_file_systems_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    folder = tmp_path / "a b"
    folder.mkdir()
    mounts.write_text(
        "22 27 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"23 22 0:22 / {tmp_path} rw - tmpfs tmpfs rw\n"
        f"24 23 0:23 / {tmp_path}/a\\040b rw master:2 - {kind} server:/home rw\n"
    )
    monkeypatch.setattr(lease, "_MOUNTS", mounts)
    assert lease.is_shared(folder / "not" / "there") is expected
    assert not lease.is_shared(tmp_path / "a")


@pytest.mark.usefixtures("shared")
def test_a_lease_is_held_until_it_is_released(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock")
    assert first is not None
    assert try_lock(tmp_path / "lock") is None, "the kernel's lock"
    first.release()
    second = try_lock(tmp_path / "lock")
    assert second is not None
    second.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("shared", "no_flock")
def test_two_processes_without_locks_of_the_kernel(
    tmp_path: Path, process: Callable[[Callable[[], None]], multiprocessing.Process]
) -> None:
    ours, theirs = multiprocessing.Pipe()
    other = process(lambda: hold(tmp_path / "lock", theirs))
    name = ours.recv()
    assert name == f"{other.pid} on {os.uname().nodename}"
    told: list[str] = []
    assert try_lock(tmp_path / "lock", waiting=told.append) is None
    assert holder(tmp_path / "lock") == name
    assert told == [f"{tmp_path}: waiting up to 1 s for a sign of life of process {name}"]
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    since = time.monotonic()
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert time.monotonic() - since > lease.EXPIRES
    lock.release()
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("shared")
def test_a_lease_of_this_machine_is_free_once_the_kernel_says_so(
    tmp_path: Path, process: Callable[[Callable[[], None]], multiprocessing.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRES", 60.0)
    ours, theirs = multiprocessing.Pipe()
    other = process(lambda: hold(tmp_path / "lock", theirs))
    ours.recv()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    since = time.monotonic()
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert time.monotonic() - since < lease.EXPIRES
    lock.release()
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("shared")
def test_another_machine_that_still_works_is_named(tmp_path: Path) -> None:
    path = of_another_machine(tmp_path / "lock")

    def beat() -> None:
        path.write_bytes(path.read_bytes().replace(b"\n0\n", b"\n1\n"))

    assert try_lock(tmp_path / "lock", check=beat) is None
    assert holder(tmp_path / "lock") == OTHER
    assert path.read_bytes().startswith(OTHER.encode()), "it keeps its lease"


@pytest.mark.usefixtures("shared")
def test_another_machine_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    of_another_machine(tmp_path / "lock")
    with locked(tmp_path / "lock", NEVER):
        assert holder(tmp_path / "lock") == lease.this_process()
    assert try_lock_and_release(tmp_path / "lock")


@pytest.mark.usefixtures("shared")
def test_of_two_that_take_over_at_once_the_last_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of_another_machine(tmp_path / "lock")
    monkeypatch.setattr(lease, "_expires", lambda *_: True)
    monkeypatch.setattr(time, "sleep", lambda _: path.write_bytes(b"88 on a third machine\n"))
    assert try_lock(tmp_path / "lock") is None


@pytest.mark.usefixtures("shared")
def test_waiting_for_another_machine_can_be_interrupted(tmp_path: Path) -> None:
    of_another_machine(tmp_path / "lock")

    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        try_lock(tmp_path / "lock", check=check)
    assert try_lock_and_release(tmp_path / "lock"), "its lock of the kernel is free again"


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("fault", ["taken over", "removed", "no connection"])
def test_who_has_lost_its_lease_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    ended: list[str] = []

    monkeypatch.setattr(lease, "_end", ended.append)
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    path = tmp_path / "lock.lease"
    if fault == "taken over":
        of_another_machine(tmp_path / "lock")
    elif fault == "removed":
        path.unlink()
    else:

        def write(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(lease, "_write", write)
    since = time.monotonic()
    while not ended and time.monotonic() - since < 5:
        time.sleep(0.01)
    said = {
        "taken over": f"{tmp_path}: process {OTHER} works here now: this one gave no sign of life for 1 s",
        "removed": f"{path}: was removed, so others may work here now",
        "no connection": f"{path}: could not be written for 1 s: Input/output error",
    }
    assert ended == [said[fault]]
    lock.release()
    assert path.exists() is (fault == "taken over"), "the lease of another stays"


def try_lock_and_release(path: Path) -> bool:
    lock: Lock | None = try_lock(path)
    if lock is not None:
        lock.release()
    return lock is not None
