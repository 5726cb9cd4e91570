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
from aimfair.run.upload import LIST, MARK, Upload
from aimfair.stages.pipeline import run_stages
from tests.tiny_run import settings

URL = "memory://results/mine"
QUIET = Progress(quiet=True)
DIGEST = "of the settings"

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
    upload = Upload(run, RunSettings(storage=URL), DIGEST)
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
    assert Upload(run, RunSettings(storage=URL), DIGEST).send(QUIET, NEVER) == (1, 1), "in another process"
    assert stored(system)["report.html"] == b"d"
    assert set(listed(system)) == set(FILES) - {"config.yaml"}


def test_some_of_the_files(run: Path, tmp_path: Path) -> None:
    chosen = RunSettings(storage=f"file://{tmp_path}/there", upload=["report.html", "seeds/*"])
    Upload(run, chosen, DIGEST).send(QUIET, NEVER)
    there = {
        path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*") if path.is_file()
    }
    assert there == {LIST, "report.html", "seeds/7/model.safetensors"}


def test_a_lost_file_is_copied_again(run: Path, system: MemoryFileSystem) -> None:
    upload = Upload(run, RunSettings(storage=URL), DIGEST)
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
    upload = Upload(run, chosen, DIGEST)
    with pytest.raises(StorageError, match=r"/there/seeds/7/model.safetensors: the connection failed 2 times"):
        upload.send(QUIET, NEVER)
    assert not [path for path in there.rglob("*") if "model" in path.name], "no half file"
    assert set(json.loads((there / LIST).read_bytes())["files"]) == {"config.yaml", "report.html"}
    broken = False
    assert Upload(run, chosen, DIGEST).send(QUIET, NEVER) == (2, 1002)
    assert (there / "seeds/7/model.safetensors").read_bytes() == FILES["seeds/7/model.safetensors"]


def test_other_results_are_not_overwritten(run: Path, system: MemoryFileSystem) -> None:
    where = RunSettings(storage=URL)
    Upload(run, where, DIGEST)
    Upload(run, where, "of other settings").send(QUIET, NEVER)  # nothing was there yet
    with pytest.raises(StorageError, match=rf"^{URL}: has results of other settings; choose another .* --overwrite$"):
        Upload(run, where, DIGEST)
    Upload(run, where, DIGEST, overwrite=True).send(QUIET, NEVER)
    Upload(run, where, DIGEST)
    system.pipe_file(f"/results/mine/{LIST}", b"{")
    with pytest.raises(StorageError, match=rf"^{URL}/{LIST}: cannot be read; remove it"):
        Upload(run, where, DIGEST)
    system.rm_file(f"/results/mine/{LIST}")
    with pytest.raises(StorageError, match=rf"^{URL}: has files but no {LIST}, so they are of no run"):
        Upload(run, where, DIGEST)


def test_a_lost_directory_comes_back(run: Path, tmp_path: Path, system: MemoryFileSystem) -> None:
    Upload(run, RunSettings(storage=URL), DIGEST).send(QUIET, NEVER)
    other = tmp_path / "other"
    (other / "stages").mkdir(parents=True)
    (other / "stages" / "x.json").write_bytes(b"mine")
    system.pipe_file("/results/mine/seeds/7/model.safetensors", b"x" * 1000)
    upload = Upload(other, RunSettings(storage=URL), DIGEST)
    with pytest.raises(StorageError, match=rf"^{URL}/seeds/7/model.safetensors: has not the digest in {LIST}; remove"):
        upload.restore(QUIET, NEVER)
    assert not list(other.rglob("model*")), "no wrong file"
    system.pipe_file("/results/mine/seeds/7/model.safetensors", FILES["seeds/7/model.safetensors"])
    assert upload.restore(QUIET, NEVER) == 1
    there = {path.relative_to(other).as_posix(): path.read_bytes() for path in other.rglob("*") if path.is_file()}
    kept = {name: FILES[name] for name in ("report.html", "seeds/7/model.safetensors")}
    assert there == kept | {"stages/x.json": b"mine", MARK: f"{URL}\n".encode()}
    (other / "report.html").unlink()
    assert Upload(other, RunSettings(storage=URL), DIGEST).restore(QUIET, NEVER) == 0, "what is removed stays so"
    assert upload.send(QUIET, NEVER) == (1, 4)


def test_a_list_that_leads_out_of_the_run(tmp_path: Path, system: MemoryFileSystem) -> None:
    files = {"../x": {"bytes": 1, "sha256": "0" * 64}}
    system.pipe_file(f"/results/mine/{LIST}", json.dumps({"settings": DIGEST, "files": files}).encode())
    with pytest.raises(StorageError, match=r"lists '\.\./x', expected paths inside the run"):
        Upload(tmp_path / "run", RunSettings(storage=URL), DIGEST).restore(QUIET, NEVER)


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


def test_a_run_continues_in_another_directory(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "run", tmp_path / "run")
    config = settings(tiny / "photographs", run={"storage": f"file://{tmp_path}/there"})
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        run_stages(run, ["report"])
    shutil.rmtree(tmp_path / "run")
    with Run.open(tmp_path / "elsewhere", config, quiet=True) as run:
        run_stages(run, ["train"])
        events = [json.loads(line)["event"] for line in (run.path / "log.jsonl").read_text().splitlines()]
        assert "step finished" not in events
        assert run.results.read_bytes() == (tiny / "run" / "results.json").read_bytes()
