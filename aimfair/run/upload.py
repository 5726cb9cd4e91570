"""Copies of a run's files at a URL, ``run.storage``, with a list of their digests; and back, if the directory is lost.

``upload.json`` there lists the files that are whole, with bytes and SHA-256. It is written at the start, every few
files and at the end, so an upload that was stopped continues with the files that are not in it.
"""

import fnmatch
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from aimfair.base.files import file_digest, is_temporary, write_text
from aimfair.base.interrupt import Interrupt
from aimfair.base.progress import Progress
from aimfair.base.settings import Record
from aimfair.base.storage import Storage, StorageError
from aimfair.config.run_settings import RunSettings

LIST = "upload.json"
MARK = ".upload"
"""The file in a run directory that names the URL with which it agrees."""

_OF_THE_DIRECTORY = ("config.yaml", "log.jsonl")  # which it has always

_LEFT_OUT = ("ablations/", "tuning/work/")  # runs of their own, and checkpoints

_EVERY = 50  # files between two writes of the list
_WORKERS = 8


class _File(Record):
    bytes: int
    sha256: str


class _List(Record):
    settings: str
    files: dict[str, _File]


class Upload:
    """The files of a run at a URL.

    Args:
        settings: with ``storage``.
        digest: of all settings that results depend on.
        overwrite: whether results of other settings there may be replaced.

    Raises:
        StorageError: the URL cannot be read or written, or has other files.
    """

    def __init__(self, run: Path, settings: RunSettings, digest: str, *, overwrite: bool = False):
        self._run, self._patterns = run, settings.upload
        self._storage = Storage(str(settings.storage))
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}
        self._list = self._begin(digest, overwrite)

    def restore(self, progress: Progress, interrupt: Interrupt) -> int:
        """Copies the files of the list into a directory that was never uploaded, if they are not there; returns their
        number. A run whose directory was lost continues after the last upload.

        Raises:
            StorageError: a file cannot be read, or has not its digest.
            Interrupted: as ``interrupt`` says; the next call continues.
        """
        mark = self._run / MARK
        if mark.exists() and mark.read_text(encoding="utf-8") == f"{self._storage.url}\n":
            return 0
        lacking = [
            (name, file)
            for name, file in self._list.files.items()
            if name not in _OF_THE_DIRECTORY and not (self._run / name).exists()
        ]
        with progress.task(f"copy {self._storage.url}", len(lacking)) as task:
            for name, file in lacking:
                target = self._run / name
                if not target.resolve().is_relative_to(self._run.resolve()):
                    raise StorageError(f"{self._storage.url}/{LIST}: lists {name!r}, expected paths inside the run")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._storage.fetch(name, target, file.bytes)
                if file_digest(target) != file.sha256:
                    target.unlink()
                    raise StorageError(f"{self._storage.url}/{name}: has not the digest in {LIST}; remove it there")
                task.advance()
                interrupt.check()
        write_text(mark, f"{self._storage.url}\n")
        return len(lacking)

    def send(self, progress: Progress, interrupt: Interrupt) -> tuple[int, int]:
        """Copies the files that are not there, or have changed; returns their number and bytes.

        Raises:
            StorageError: a file cannot be written; those before stay, and the next call continues.
            Interrupted: as ``interrupt`` says; likewise.
        """
        there = self._storage.list()
        wanted = {name: self._facts(name) for name in self._names()}
        known = {
            name: file
            for name, file in self._list.files.items()
            if wanted.get(name) == file and name in there and there[name].size == file.bytes
        }
        lacking = [(name, file) for name, file in wanted.items() if name not in known]

        def put(one: tuple[str, _File]) -> tuple[str, _File]:
            with (self._run / one[0]).open("rb") as source:
                self._storage.put(source, one[0])
            return one

        with ThreadPoolExecutor(_WORKERS) as pool, progress.task("upload", len(wanted), len(known)) as task:
            try:
                for number, (name, file) in enumerate(pool.map(put, lacking), 1):
                    known[name] = file
                    if number % _EVERY == 0:
                        self._write(known)
                    task.advance()
                    interrupt.check()
            finally:
                pool.shutdown(cancel_futures=True)
        self._write(known)
        return len(lacking), sum(file.bytes for _, file in lacking)

    def _begin(self, digest: str, overwrite: bool) -> _List:
        """The list that is there, or a new one; it is written to see that this works."""
        self._list = _List(settings=digest, files={})
        files: dict[str, _File] = {}
        there = self._storage.list()
        if there and LIST not in there:
            raise StorageError(
                f"{self._storage.url}: has files but no {LIST}, so they are of no run; choose another folder"
            )
        if there:
            try:
                known = _List.model_validate_json(self._storage.read(LIST))
            except ValidationError as error:
                raise StorageError(f"{self._storage.url}/{LIST}: cannot be read; remove it") from error
            if known.settings == digest:
                files = known.files
            elif known.files and not overwrite:
                raise StorageError(
                    f"{self._storage.url}: has results of other settings; choose another folder, or replace them with"
                    " --overwrite"
                )
        self._write(files)
        return self._list

    def _write(self, files: dict[str, _File]) -> None:
        self._list = _List(settings=self._list.settings, files=files)
        self._storage.put(io.BytesIO(f"{self._list.model_dump_json(indent=2)}\n".encode()), LIST)

    def _names(self) -> Iterator[str]:
        """Of the files to copy: no locks, temporary files or what is left out."""
        for path in sorted(self._run.rglob("*")):
            name = path.relative_to(self._run).as_posix()
            own = (
                path.name.startswith((".lock", MARK))
                or is_temporary(path.name)
                or name.startswith(_LEFT_OUT)
                or name == LIST
            )
            if not own and path.is_file() and any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns):
                yield name

    def _facts(self, name: str) -> _File:
        """Bytes and digest; the latter is not computed again while size and time stay the same."""
        path = self._run / name
        status = path.stat()
        key = status.st_size, status.st_mtime_ns
        if name not in self._digests or self._digests[name][0] != key:
            self._digests[name] = key, file_digest(path)
        return _File(bytes=status.st_size, sha256=self._digests[name][1])
