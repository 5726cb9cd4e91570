"""replace_file and its kin: the old file or the new one, whatever fails."""

import errno
import json
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from aimfair.base.files import is_temporary, remove_temporaries, replace_file, write_json, write_text
from aimfair.selective import storage


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text("old")
    return path


@contextmanager
def small_disk():
    """Files can grow to 1000 bytes, then writing fails as on a full disk: pytest's own output, too, so not for long."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def only(file: Path, text: str) -> bool:
    """Whether the folder holds ``file`` with this text, and nothing else."""
    return file.read_text() == text and list(file.parent.iterdir()) == [file]


def test_replaces_and_leaves_nothing_else(file):
    write_text(file, "new ü\n")
    assert only(file, "new ü\n")


def test_the_old_file_stands_until_the_end(file):
    with replace_file(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
        assert is_temporary(temporary.name)
        assert temporary.parent == file.parent
    assert only(file, "new")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_within_leaves_the_old_file(file, error):
    def write() -> None:
        with replace_file(file) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert only(file, "old")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(file, monkeypatch, function):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new")
    assert only(file, "old")


def test_a_write_that_fails_leaves_the_old_file(file):
    with pytest.raises(OSError, match="too large"), small_disk():
        write_text(file, "new" * 1000)
    assert only(file, "old")


def test_tensors_that_do_not_fit_leave_the_old_file(file):
    with pytest.raises(OSError, match=r"some\.txt"), small_disk():
        storage.save(file, "test", 1, {"weights": torch.zeros(10_000)})
    assert only(file, "old")


def test_data_reach_the_disk_before_the_name(file, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    write_text(file, "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no" / "file", "new")


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": [1, None]}


def test_stray_temporaries_go_and_nothing_else_does(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    stray = [tmp_path / ".x.json.12.tmp", tmp_path / "a" / "b" / ".m.safetensors.99999.tmp"]
    own = [tmp_path / name for name in (".hidden.tmp", "x.12.tmp", ".x.12.tmp.png", "a/.x.tmp")]
    for path in stray + own:
        path.touch()
    (tmp_path / "a" / ".folder.1.tmp").mkdir()
    assert remove_temporaries(tmp_path) == len(stray)
    assert all(path.exists() for path in own)
    assert not any(path.exists() for path in stray)
