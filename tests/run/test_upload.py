"""Copies of a run at a URL: whole files, a list of their digests, and what faults leave."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from aimfair.base import storage
from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER
from aimfair.base.progress import Progress
from aimfair.base.storage import StorageError
from aimfair.config.run_settings import RunSettings
from aimfair.run import upload as upload_module
from aimfair.run.directory import Run
from aimfair.run.upload import LIST, Upload
from aimfair.stages.pipeline import run_stages
from tests.tiny_run import settings

URL = "memory://results/mine"
QUIET = Progress(quiet=True)

FILES = {"config.yaml": b"a", "report.html": b"b", "seeds/7/model.safetensors": b"c" * 1000, "stages/x.json": b"{}"}
OTHERS = [".lock", ".lock.lease", ".x.json.17.tmp", "ablations/a/run/config.yaml", "tuning/work/checkpoint.safetensors"]


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setattr(storage, "_PAUSES", (0.0,))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in (*FILES, *OTHERS):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES.get(name, b"not to be copied"))
    return tmp_path / "run"


def stored(system: MemoryFileSystem) -> dict[str, bytes]:
    found = system.find("/results/mine")
    return {name.removeprefix("/results/mine/"): system.cat_file(name) for name in found}


def listed(system: MemoryFileSystem) -> dict[str, Any]:
    files: dict[str, Any] = json.loads(stored(system)[LIST])["files"]
    return files


def test_the_files_of_a_run_and_their_digests(run: Path, system: MemoryFileSystem) -> None:
    upload = Upload(run, RunSettings(storage=URL))
    assert list(stored(system)) == [LIST]
    assert upload.send(QUIET, NEVER) == (4, 1004)
    there = stored(system)
    assert {name: data for name, data in there.items() if name != LIST} == FILES
    assert listed(system) == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    }
    assert upload.send(QUIET, NEVER) == (0, 0)
    (run / "report.html").write_bytes(b"d")
    (run / "config.yaml").unlink()
    assert Upload(run, RunSettings(storage=URL)).send(QUIET, NEVER) == (1, 1), "in another process"
    assert stored(system)["report.html"] == b"d"
    assert set(listed(system)) == set(FILES) - {"config.yaml"}


def test_some_of_the_files(run: Path, tmp_path: Path) -> None:
    chosen = RunSettings(storage=f"file://{tmp_path}/there", upload=["report.html", "seeds/*"])
    Upload(run, chosen).send(QUIET, NEVER)
    there = {
        path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*") if path.is_file()
    }
    assert there == {LIST, "report.html", "seeds/7/model.safetensors"}


def test_a_lost_file_is_copied_again(run: Path, system: MemoryFileSystem) -> None:
    upload = Upload(run, RunSettings(storage=URL))
    upload.send(QUIET, NEVER)
    system.rm_file("/results/mine/report.html")
    system.pipe_file("/results/mine/seeds/7/model.safetensors", b"cut off")
    assert upload.send(QUIET, NEVER) == (2, 1001)


def test_a_lost_connection_leaves_whole_files_and_continues(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "_EVERY", 1)
    monkeypatch.setattr(upload_module, "_WORKERS", 1)
    copy, broken, there = shutil.copyfileobj, True, tmp_path / "there"

    def cut(source: Any, file: Any, size: int) -> None:
        if broken and getattr(source, "name", "").endswith("model.safetensors"):
            file.write(source.read(10))
            raise ConnectionResetError(104, "Connection reset by peer")
        copy(source, file, size)

    monkeypatch.setattr(shutil, "copyfileobj", cut)
    chosen = RunSettings(storage=f"file://{there}")
    upload = Upload(run, chosen)
    with pytest.raises(StorageError, match=r"/there/seeds/7/model.safetensors: the connection failed 2 times"):
        upload.send(QUIET, NEVER)
    assert not [path for path in there.rglob("*") if "model" in path.name], "no half file"
    assert set(json.loads((there / LIST).read_bytes())["files"]) == {"config.yaml", "report.html"}
    broken = False
    assert Upload(run, chosen).send(QUIET, NEVER) == (2, 1002)
    assert (there / "seeds/7/model.safetensors").read_bytes() == FILES["seeds/7/model.safetensors"]


def test_another_run_is_not_overwritten(run: Path, tmp_path: Path, system: MemoryFileSystem) -> None:
    Upload(run, RunSettings(storage=URL))
    (tmp_path / "other").mkdir()
    with pytest.raises(StorageError, match=rf"^{URL}: has the results of another run; choose another folder"):
        Upload(tmp_path / "other", RunSettings(storage=URL))
    system.rm_file(f"/results/mine/{LIST}")
    system.pipe_file("/results/mine/thesis.tex", b"")
    with pytest.raises(StorageError, match=rf"^{URL}: has files but no {LIST}, so they are not of this run"):
        Upload(run, RunSettings(storage=URL))
    system.pipe_file(f"/results/mine/{LIST}", b"{")
    with pytest.raises(StorageError, match=rf"^{URL}/{LIST}: cannot be read; remove it"):
        Upload(run, RunSettings(storage=URL))


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", ""])
def test_patterns_outside_of_the_run(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected patterns of paths inside the run directory"):
        RunSettings(storage=URL, upload=[pattern])


def test_a_path_is_no_url() -> None:
    with pytest.raises(ValueError, match="found '/data', expected a URL, such as s3://bucket/folder"):
        RunSettings(storage="/data")


def test_after_each_stage(
    tiny: Path, tmp_path: Path, system: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where results go may change without --overwrite. A failure is an error only after the last stage."""
    shutil.copytree(tiny / "run", tmp_path / "run")
    config = settings(tiny / "photographs", run={"storage": URL, "upload": ["report.html", "log.jsonl"]})
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        run_stages(run, ["select", "report"])
    assert stored(system)["report.html"] == run.report.read_bytes()
    assert set(listed(system)) == {"report.html", "log.jsonl"}

    sent = 0

    def send(*_: object) -> None:
        nonlocal sent
        sent += 1
        raise StorageError(f"{URL}: access denied")

    monkeypatch.setattr(Upload, "send", send)
    warnings: list[str] = []
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        monkeypatch.setattr(run.log, "warn", lambda message, **_: warnings.append(message))
        with pytest.raises(AimfairError, match=rf"^run.storage: {URL}: access denied; the results are in {run.path}$"):
            run_stages(run, ["select", "report"])
    assert warnings == [f"run.storage: {URL}: access denied; tried again after the next stage"]
    assert sent == 2
