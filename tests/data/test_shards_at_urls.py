"""Shards that are read in place at a URL."""

import errno
import io
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from aimfair.base import storage
from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.storage import Storage, StorageError
from aimfair.data import webdataset
from aimfair.data.load import list_images, load_splits
from tests.data.test_shards import settings, write

URL = "memory://bucket/shards"


@pytest.fixture(params=["webdataset", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bucket(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setattr(storage, "_PAUSES", (0.0,))
    write(kind, tmp_path / "shards", tmp_path)
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "shards").iterdir():
        system.pipe_file(f"/bucket/shards/{path.name}", path.read_bytes())
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("keep_decoded", [True, False])
def test_the_splits_and_pixels_of_a_folder(tmp_path: Path, kind: str, keep_decoded: bool, cache_home: Path) -> None:
    here = load_splits(settings(kind, tmp_path / "shards"))
    there = load_splits(settings(kind, URL, keep_decoded=keep_decoded))  # type: ignore[arg-type]
    for name, part in here.parts.items():
        assert there.parts[name].ids == part.ids
        numbers = np.random.default_rng(0).permutation(len(part))
        np.testing.assert_array_equal(there.parts[name].images[numbers], part.images[numbers])
        assert there.parts[name].target.tolist() == part.target.tolist()
    assert not (cache_home / "aimfair" / "remote").exists(), "no copy"


@pytest.mark.usefixtures("bucket")
def test_damage_is_named_by_its_url(kind: str, bucket: MemoryFileSystem) -> None:
    (name, *_) = sorted(bucket.find("/bucket/shards"))
    bucket.pipe_file(name, b"no shard")
    with pytest.raises(AimfairError, match=rf"^{URL}/part-000.(tar|parquet): cannot be read as "):
        list_images(settings(kind, URL))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["webdataset"], indirect=True)
def test_a_lost_connection_is_one_line_and_the_index_continues(
    kind: str, bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    original = Storage.open
    monkeypatch.setattr(webdataset, "map_in_order", map)  # one after another
    monkeypatch.setattr(webdataset.contextlib, "closing", lambda found: webdataset.contextlib.nullcontext(found))
    monkeypatch.setattr(Storage, "open", lambda self, name: Lost() if name == "part-010.tar" else original(self, name))
    with pytest.raises(StorageError) as caught:
        list_images(settings(kind, URL))  # type: ignore[arg-type]
    said = "the connection failed (Connection reset by peer); the same command continues"
    assert str(caught.value) == f"data.root: {URL}/part-010.tar: {said}"

    opened: list[str] = []
    monkeypatch.setattr(Storage, "open", lambda self, name: opened.append(name) or original(self, name))
    assert len(list_images(settings(kind, URL)).files) == 24  # type: ignore[arg-type]
    assert opened == ["part-010.tar", "part-015.tar", "part-020.tar"]


def test_an_interrupted_index_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("webdataset", tmp_path / "shards", tmp_path)
    through: list[str] = []
    original = webdataset._read_through
    monkeypatch.setattr(
        webdataset, "_read_through", lambda path, *rest: through.append(path.name) or original(path, *rest)
    )

    class Second(Interrupt):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == 2:
                raise Interrupted(2)

    with pytest.raises(Interrupted):
        list_images(settings("webdataset", tmp_path / "shards"), interrupt=Second())
    list_images(settings("webdataset", tmp_path / "shards"))
    assert sorted(through) == sorted(set(through)), "none is read twice"


def test_a_full_disk_while_the_index_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("webdataset", tmp_path / "shards", tmp_path)

    def full(path: Path, _: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(webdataset, "write_text", full)
    said = r"/aimfair/shards/\w+.json: no space left on the disk .*; free some, or choose another with XDG_CACHE_HOME$"
    with pytest.raises(AimfairError, match=said):
        list_images(settings("webdataset", tmp_path / "shards"))


@pytest.mark.parametrize("fault", ["removed", "replaced"])
def test_images_that_change_during_a_run(tmp_path: Path, fault: str) -> None:
    write("webdataset", tmp_path / "shards", tmp_path)
    splits = load_splits(settings("webdataset", tmp_path / "shards", keep_decoded=False))
    shard = tmp_path / "shards" / "part-000.tar"
    if fault == "removed":
        shard.unlink()
    else:
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises((AimfairError, FileNotFoundError)) as caught:
        splits.train.images[[0, 1]]
    assert str(shard) in str(caught.value)


def _matches(pattern: str, *names: str) -> list[str]:
    from aimfair.data.shards import _matching

    return _matching(names, pattern)


def test_patterns_are_those_of_paths() -> None:
    names = ("a.tar", "x/a.tar", "x/y/a.tar", "x/b.tar", "x/a+.tar", "x/a.tar.gz")
    assert _matches("*.tar", *names) == ["a.tar"]
    assert _matches("**/*.tar", *names) == ["a.tar", "x/a.tar", "x/y/a.tar", "x/b.tar", "x/a+.tar"]
    assert _matches("x/?.tar", *names) == ["x/a.tar", "x/b.tar"]
    assert _matches("x/a+.tar", *names) == ["x/a+.tar"]
    assert _matches("x/**/a.tar", *names) == ["x/a.tar", "x/y/a.tar"]
