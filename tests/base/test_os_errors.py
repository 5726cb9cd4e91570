"""Errors of the operating system: one line with the file, the cause, and what to do."""

import errno
import fcntl
import os
import pwd
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from aimfair.base.files import append_text, naming, replace_file, write_text
from aimfair.base.lock import try_lock
from aimfair.base.log import Log
from aimfair.base.os_errors import explain


def fails_with(number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def line_of(number: int, path: Path, places: dict[Path, str]) -> str:
    return explain(OSError(number, os.strerror(number), str(path)), places)


def line_from(function, *arguments: object, **places: Path) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (any)
        function(*arguments)
    return explain(caught.value, {path: f"--{name}" for name, path in places.items()})


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EDQUOT, "disk quota exceeded; free some, or choose another with --run"),
        (errno.EROFS, "read-only file system; choose another with --run"),
        (errno.EISDIR, "is a folder, expected a file; remove it, or choose another with --run"),
        (errno.ENAMETOOLONG, "name too long, most file systems allow 255 bytes; shorten it, or choose another with"),
        (errno.ELOOP, "a link that leads to itself; remove it, or choose"),
        (errno.EFBIG, "larger than the file system or ulimit -f allows; choose"),
        (errno.ENODEV, "the file system does not support memory maps; choose"),
        (errno.EIO, "input or output error, the disk or the connection to it fails; choose"),
        (errno.EBUSY, "Device or resource busy; choose another with --run"),
    ],
)
def test_each_cause_is_worded(tmp_path, number, cause):
    assert line_of(number, tmp_path / "r" / "a", {tmp_path / "r": "--run"}).startswith(
        f"{tmp_path / 'r' / 'a'}: {cause}"
    )


def test_a_device_in_place_of_a_folder():
    said = explain(FileExistsError(errno.EEXIST, "File exists", "/dev/null/x"), {Path("/dev/null/x"): "--to"})
    assert said == "/dev/null: is a file, expected a folder; move it away, or choose another with --to"


def test_permissions_name_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="ada"))
    said = line_of(errno.EACCES, tmp_path / "a", {tmp_path: "--run"})
    assert (
        said == f"{tmp_path / 'a'}: permission denied to user ada; change its permissions, or choose another with --run"
    )


def test_a_full_disk_says_how_much_there_is_and_is_needed(tmp_path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "gone" / "a"))
    error.add_note("2.50 MB needed")
    said = explain(error, {tmp_path: "--run"})
    assert " MB free, 2.50 MB needed); free some, or choose another with --run" in said


def test_too_many_open_files_say_how_to_raise_the_limit(tmp_path):
    said = line_of(errno.EMFILE, tmp_path / "a", {tmp_path: "--run"})
    assert re.fullmatch(r".*/a: too many open files, the limit is [0-9,]+; raise it: ulimit -n [0-9]+", said)


def test_the_innermost_place_is_named(tmp_path):
    places = {tmp_path: "XDG_CACHE_HOME", tmp_path / "r": "--run", tmp_path / "r" / "out": "--to"}
    for path, setting in (("x", "XDG_CACHE_HOME"), ("r/x", "--run"), ("r/out/x/y", "--to"), ("r", "--run")):
        assert line_of(errno.EROFS, tmp_path / path, places).endswith(f"choose another with {setting}")
    above = line_of(errno.EROFS, tmp_path.parent, {tmp_path / "r": "--run"})
    assert above.endswith("choose another with --run"), "a folder on the way to a place is moved with it"
    between = {tmp_path / "r": "--run", tmp_path / "r" / "out" / "x": "--to"}
    assert line_of(errno.EROFS, tmp_path / "r" / "out", between).endswith("choose another with --to")
    assert line_of(errno.EROFS, tmp_path / "b", {tmp_path / "r": "--run"}).endswith("read-only file system")


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "a").touch()
    found = f"{tmp_path / 'a'}: is a file, expected a folder; move it away, or choose another with --run"
    assert line_from((tmp_path / "a").mkdir, run=tmp_path / "a") == found
    assert line_from((tmp_path / "a" / "b").mkdir, run=tmp_path / "a" / "b") == found
    assert line_from(write_text, tmp_path / "a" / "b" / "c", "", run=tmp_path) == found


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    for write in (write_text, append_text):
        said = line_from(write, tmp_path / "a", "text", run=tmp_path)
        assert said == f"{tmp_path / 'a'}: is a folder, expected a file; remove it, or choose another with --run"


def test_a_broken_link(tmp_path):
    (tmp_path / "a").symlink_to("nowhere")
    found = f"{tmp_path / 'a'}: a link to nowhere, which does not exist; remove the link, or choose another with --run"
    assert line_from((tmp_path / "a").mkdir, run=tmp_path / "a") == found
    assert line_from(write_text, tmp_path / "a" / "b", "", run=tmp_path / "a") == found


def test_a_folder_that_is_gone(tmp_path):
    said = line_from(write_text, tmp_path / "a" / "b" / "c", "", run=tmp_path)
    assert said == f"{tmp_path / 'a'}: the folder is gone; choose another with --run"


def test_a_name_that_is_too_long(tmp_path):
    said = line_from(write_text, tmp_path / ("a" * 250), "", run=tmp_path)
    assert said.startswith(f"{tmp_path / ('a' * 250)}: name too long")


@pytest.mark.parametrize(
    ("write", "function"), [(write_text, "fsync"), (write_text, "replace"), (append_text, "fsync")]
)
def test_writes_name_the_file_not_the_temporary_one(tmp_path, monkeypatch, write, function):
    monkeypatch.setattr(os, function, fails_with(errno.ENOSPC))
    assert line_from(write, tmp_path / "a", "text", run=tmp_path).startswith(f"{tmp_path / 'a'}: no space left")


def test_errors_about_other_files_keep_their_name(tmp_path):
    def copy() -> None:
        with replace_file(tmp_path / "a"):
            (tmp_path / "source").read_bytes()

    assert line_from(copy, run=tmp_path).startswith(f"{tmp_path / 'source'}: ")


def test_a_copy_names_the_file_that_is_written(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "source", None, str(tmp_path / "target"))
    assert explain(error, {}).startswith(f"{tmp_path / 'target'}: no space left")


def test_without_a_name_or_number():
    assert explain(OSError(errno.EROFS, "Read-only file system"), {Path("r"): "--run"}).startswith("r: read-only")
    assert explain(OSError("encoder error -2"), {}) == "encoder error -2"
    with pytest.raises(OSError, match="encoder") as caught, naming(Path("a.png")):
        raise OSError("encoder error -2")
    assert explain(caught.value, {}) == "a.png: encoder error -2"


def test_a_lock_on_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails_with(errno.ENOLCK))
    said = line_from(try_lock, tmp_path / "lock", run=tmp_path)
    assert said == f"{tmp_path / 'lock'}: the file system does not support locks; choose another with --run"


def test_a_line_of_the_log_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    log = Log(tmp_path / "log.jsonl")
    log("first")
    before = (tmp_path / "log.jsonl").read_bytes()

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 10

        def write(self, data: bytes) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.left = self.file.write(data[: self.left]), 0
            return written

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    monkeypatch.setattr(log, "_file", Full(log._file))
    assert line_from(log, "second", run=tmp_path).startswith(f"{tmp_path / 'log.jsonl'}: no space left")
    assert (tmp_path / "log.jsonl").read_bytes() == before
    log.close()


def test_an_error_of_no_disk_is_not_blamed_on_a_folder():
    error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    assert "Connection refused" in explain(error, {Path("r"): "--run"})
    assert "--run" not in explain(error, {Path("r"): "--run"})
