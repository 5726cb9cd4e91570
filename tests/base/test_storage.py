"""Inputs at URLs: whole copies in the cache, and one line for each fault."""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from aimfair.base import storage as storage_module
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.storage import Storage, StorageError, local, read_part

URL = "memory://bucket/photos"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage_module, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    for number in range(20):
        system.pipe_file(f"/bucket/photos/{number % 3}/{number}.jpg", bytes([number]) * (number + 1))
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {f"{number % 3}/{number}.jpg": bytes([number]) * (number + 1) for number in range(20)}


@pytest.mark.usefixtures("bucket")
def test_a_folder_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    place = local(URL)
    assert place.name == "photos"
    assert files(place) == EXPECTED
    monkeypatch.setattr(storage_module, "_UP_TO_DATE", set())  # as in another process

    def fetch(*_: object) -> None:
        pytest.fail("copied again")

    monkeypatch.setattr(Storage, "fetch", fetch)
    assert local(URL) == place


def test_a_copy_follows_its_url(bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    place = local(URL)
    bucket.rm_file("/bucket/photos/0/0.jpg")
    bucket.pipe_file("/bucket/photos/1/1.jpg", b"of the same..."[:2])
    fetched: list[str] = []
    original = Storage.fetch
    monkeypatch.setattr(Storage, "fetch", lambda self, name, *rest: fetched.append(name) or original(self, name, *rest))
    monkeypatch.setattr(storage_module, "_UP_TO_DATE", set())
    (place / "2" / "2.jpg").write_bytes(b"cut")
    (place / "2" / "2.jpg").write_bytes(b"c")
    local(URL)
    assert sorted(fetched) == ["1/1.jpg", "2/2.jpg"]  # by threads, in any order
    assert files(place) == {name: data for name, data in EXPECTED.items() if name != "0/0.jpg"} | {"1/1.jpg": b"of"}


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    copy = local(f"file://{tmp_path}/model.safetensors")
    assert copy.read_bytes() == b"weights"
    assert copy.name == "model.safetensors"
    assert copy.is_relative_to(tmp_path / "cache")
    assert local(tmp_path) == tmp_path


@pytest.mark.usefixtures("bucket")
def test_an_interrupted_copy_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    class After(Interrupt):
        def __init__(self, files: int) -> None:
            super().__init__()
            self.left = files

        def check(self) -> None:
            self.left -= 1
            if not self.left:
                raise Interrupted(2)

    fetched: list[str] = []
    original = Storage.fetch
    monkeypatch.setattr(Storage, "fetch", lambda self, name, *rest: fetched.append(name) or original(self, name, *rest))
    monkeypatch.setattr(storage_module, "_WORKERS", 1)
    with pytest.raises(Interrupted):
        local(URL, interrupt=After(6))
    known = len(fetched)
    assert files(local(URL)) == EXPECTED
    assert len(fetched) < 20 + known, "files of before are not copied again"


def test_a_lost_connection_leaves_no_half_file(bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    original, failures = MemoryFileSystem.open, 2

    class Lost(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise ConnectionResetError(104, "Connection reset by peer")
            return super().read(3)

    def open_(self: MemoryFileSystem, path: str, *rest: Any, **options: Any) -> Any:
        nonlocal failures
        if path.endswith("/19.jpg") and failures:
            failures -= 1
            return Lost(b"x" * 20)
        return original(self, path, *rest, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", open_)
    assert files(local(URL)) == EXPECTED, "tried again"
    bucket.pipe_file("/bucket/photos/1/19.jpg", b"new")
    failures = 100
    monkeypatch.setattr(storage_module, "_UP_TO_DATE", set())
    with pytest.raises(StorageError) as caught:
        local(URL, "data.root")
    assert str(caught.value) == (
        f"data.root: {URL}/1/19.jpg: the connection failed 3 times (Connection reset by peer); the same"
        " command continues"
    )
    (place,) = (path for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("photos"))
    assert files(place) == EXPECTED, "the old file is whole"


@pytest.mark.usefixtures("bucket")
def test_a_full_disk_is_not_the_fault_of_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file: Any, __: int) -> None:
        file.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        local(URL)
    assert str(caught.value.filename).startswith(str(tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".jpg", ".tmp")], "no half file"


def test_a_file_that_ends_early_is_a_lost_connection(bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MemoryFileSystem.find
    larger = lambda info: info | {"size": info["size"] + 1}  # noqa: E731
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *a, **k: {name: larger(info) for name, info in original(*a, **k).items()}
    )
    with pytest.raises(StorageError, match=r"the connection failed 3 times \(1 of 2 bytes came\)"):
        local(URL)
    assert bucket.exists("/bucket/photos/0/0.jpg")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError("The specified bucket does not exist"),
            "is not there (The specified bucket",
        ),
        (
            PermissionError("Access Denied"),
            "access denied (Access Denied); check the credentials",
        ),
        (
            type("NoCredentialsError", (Exception,), {})("Unable to locate"),
            "no credentials were found; put",
        ),
        (
            type("EndpointConnectionError", (ConnectionError,), {})("no route"),
            "the connection failed 3 times",
        ),
        (OSError(5, "SlowDown wJalrXUtnFEMI"), "SlowDown ***"),
    ],
)
def test_faults_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def find(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setattr(MemoryFileSystem, "find", find)
    with pytest.raises(StorageError) as caught:
        local(URL, "data.root")
    assert str(caught.value).startswith(f"data.root: {URL}: {said}")
    assert "\n" not in str(caught.value)


def test_nothing_there() -> None:
    with pytest.raises(StorageError, match=r"^model.pretrained: memory://nothing/here: there is no file$"):
        local("memory://nothing/here", "model.pretrained")


def test_unknown_protocols_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"^data.root: xyz://bucket: Protocol not known: xyz$"):
        local("xyz://bucket", "data.root")
    with pytest.raises(StorageError, match=r"^data.root: abfs://bucket/x: needs: pip install adlfs \(.*\)$"):
        local("abfs://bucket/x", "data.root")


def test_names_that_lead_out_of_the_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "/bucket/photos/../../x"
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: {name: {"size": 1, "name": name}})
    with pytest.raises(StorageError, match=r"found a file '../../x', expected names inside the folder"):
        local(URL)


def test_a_part_is_whole_though_the_system_reads_less_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, 3))

    path = tmp_path / "file"
    path.write_bytes(bytes(range(20)))
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Slow(self))
    assert read_part(path, 2, 11) == bytes(range(2, 13))
    assert read_part(path, 15, 11) == bytes(range(15, 20))  # up to its end
