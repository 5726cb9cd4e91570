"""Files at URLs of any protocol that fsspec knows, such as ``s3://bucket/folder`` or ``gs://bucket/file``.

Credentials are those of the protocol's library, from the environment or its own files (for ``s3``: ``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ...), and blotted out of errors.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import append_text, cache_folder, replace_file
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lock import locked
from aimfair.base.os_errors import FULL
from aimfair.base.progress import Progress
from aimfair.base.settings import is_url

_Result = TypeVar("_Result")

_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)

_PAUSES = (1.0, 4.0)
"""Seconds before a lost connection is tried again."""

_UP_TO_DATE: set[Path] = set()
"""What this process has copied or found in the cache."""

_WORKERS = 16  # files at a time
_CHUNK = 2**20


class StorageError(AimfairError):
    """A URL that cannot be read or written."""


class _CutOffError(Exception):
    """A file ended early."""


class Status(NamedTuple):
    """What differs once a file has changed: its bytes, and an ETag, digest or time that the protocol gives."""

    size: int
    stamp: str


class Storage:
    """A file, or all files below a folder, at a URL.

    Raises:
        StorageError: the protocol is unknown, or its library is not installed.
    """

    def __init__(self, url: str):
        import fsspec  # type: ignore[import-untyped]
        from fsspec.registry import known_implementations  # type: ignore[import-untyped]

        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = known_implementations[protocol]["class"].partition(".")[0]
            raise StorageError(f"{url}: needs: pip install {package} ({one_line(error)})") from error
        except ValueError as error:
            raise StorageError(f"{url}: {one_line(error)}") from error
        self._root = self._root.rstrip("/")

    def list(self) -> dict[str, Status]:
        """Name relative to the folder -> status, of all files below it, sorted; of a file itself under "".

        Raises:
            StorageError: it cannot be listed.
        """

        def find() -> dict[str, Any]:
            self._system.invalidate_cache()
            found: dict[str, Any] = self._system.find(self._root, detail=True)
            return found

        found = self._try(find)
        return {name.removeprefix(self._root).lstrip("/"): _status(info) for name, info in sorted(found.items())}

    def open(self, name: str) -> IO[bytes]:
        """A file for reading, at any place."""
        file: IO[bytes] = self._try(lambda: self._system.open(self._path(name), "rb"), name)
        return file

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes of a file from ``start`` to ``end``."""
        data: bytes = self._try(lambda: self._system.cat_file(self._path(name), start=start, end=end), name)
        return data

    def fetch(self, name: str, target: Path, size: int) -> None:
        """Copies a file of ``size`` bytes to ``target``, whole or not at all."""

        def copy() -> None:
            with replace_file(target) as temporary:
                with self._system.open(self._path(name), "rb") as source, temporary.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
                if (found := temporary.stat().st_size) != size:
                    raise _CutOffError(f"{found:,} of {size:,} bytes came")

        self._try(copy, name)

    def put(self, source: IO[bytes], name: str) -> None:
        """Writes a file, whole or not at all."""

        def copy() -> None:
            source.seek(0)
            path = self._path(name)
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._system.open(path, "wb", autocommit=False) as file:
                try:
                    shutil.copyfileobj(source, file, _CHUNK)
                except BaseException:
                    file.discard()
                    raise
            file.commit()

        self._try(copy, name)

    def __truediv__(self, name: str) -> "RemoteFile":
        return RemoteFile(self, name)

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _try(self, action: Callable[[], _Result], name: str = "") -> _Result:
        """Does it, again after a lost connection."""
        for pause in (*_PAUSES, None):
            try:
                return action()
            except Exception as error:  # each protocol has its own
                if _of_this_machine(error):
                    raise
                if pause is not None and _is_lost_connection(error):
                    time.sleep(pause)
                    continue
                reason = _reason(error, f" {len(_PAUSES) + 1} times")
                raise StorageError(f"{self.url}{f'/{name}' if name else ''}: {reason}") from error
        raise AssertionError("unreachable")


class RemoteFile:
    """A file in a storage, where a path could be: to be opened for reading, or named in an error."""

    def __init__(self, storage: Storage, name: str):
        self._storage, self._name = storage, name

    def __str__(self) -> str:
        return f"{self._storage}/{self._name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._name).suffix

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return self._storage.open(self._name)

    def read(self, start: int, size: int) -> bytes:
        """The bytes at a place."""
        return self._storage.read(self._name, start, start + size)


File = Path | RemoteFile


@contextlib.contextmanager
def reading(file: File) -> Iterator[IO[bytes]]:
    """A file open for reading, at any place.

    Raises:
        OSError, StorageError: it cannot be opened, or later not be read.
    """
    with file.open("rb") as stream:
        try:
            yield stream
        except AimfairError:
            raise
        except Exception as error:
            if isinstance(file, Path):
                raise
            raise StorageError(f"{file}: {_reason(error)}") from error


def read_part(file: File, start: int, size: int) -> bytes:
    """The bytes at a place in a file.

    Raises:
        OSError, StorageError: it cannot be read.
    """
    if isinstance(file, RemoteFile):
        return file.read(start, size)
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        parts = []
        while size and (part := stream.read(size)):  # the system reads 2 GiB at a time, or less
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def files_in(root: Path | Storage) -> dict[str, Status]:
    """Path relative to the folder, with "/", of every file below it -> status; sorted.

    Raises:
        OSError, StorageError: it cannot be listed.
    """
    if isinstance(root, Storage):
        return root.list()
    found = {}
    for folder, _, names in os.walk(root, onerror=_refuse, followlinks=True):
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                status = path.stat()
                found[path.relative_to(root).as_posix()] = Status(status.st_size, str(status.st_mtime_ns))
    return dict(sorted(found.items()))


def _refuse(error: OSError) -> None:
    """``os.walk`` would silently skip a folder that it cannot read."""
    raise error


def _status(info: dict[str, Any]) -> Status:
    stamps = (
        info.get(key)
        for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "updated", "created")
    )
    return Status(int(info["size"] or 0), str(next((stamp for stamp in stamps if stamp is not None), "")))


def _of_this_machine(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def _kinds(error: BaseException) -> set[str]:
    """Names of the classes of an error and of what led to it: libraries of protocols are not imported here."""
    names: set[str] = set()
    current: BaseException | None = error
    while current is not None:
        names |= {kind.__name__ for kind in type(current).__mro__}
        current = current.__cause__ or current.__context__
    return names


def _is_lost_connection(error: Exception) -> bool:
    lost = {
        "ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError",
        "IncompleteRead", "_CutOffError",
    }  # fmt: skip
    return bool(_kinds(error) & lost) and not isinstance(error, FileNotFoundError | PermissionError)


def _reason(error: Exception, tries: str = "") -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    text = _without_secrets(text)
    if isinstance(error, FileNotFoundError):
        return f"is not there ({text})"
    if isinstance(error, PermissionError):
        return f"access denied ({text}); check the credentials in the environment, and their rights"
    if "NoCredentialsError" in _kinds(error):
        return "no credentials were found; put them into the environment or the file of the protocol's library"
    if _is_lost_connection(error):
        return f"the connection failed{tries} ({text}); the same command continues"
    return text


def _without_secrets(text: str) -> str:
    secrets = [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 6]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def local(
    name: str | Path, setting: str | None = None, *, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> Path:
    """The file or folder ``name``; of a URL a copy of all its files in the cache, whole.

    The copy is brought up to date when the process first asks for it: what is there already is not copied again, what
    the URL no longer has is removed.

    Args:
        setting: that gives the name, for errors.

    Raises:
        StorageError: the URL cannot be read; files copied so far are kept.
        Interrupted: as ``interrupt`` says; likewise.
    """
    if not is_url(name):
        return Path(name)
    try:
        return _local(Storage(name), progress or Progress(quiet=True), interrupt)
    except StorageError as error:
        raise StorageError(f"{setting}: {error}" if setting else str(error)) from error


def _local(storage: Storage, progress: Progress, interrupt: Interrupt) -> Path:
    folder = cache_folder("remote") / hashlib.sha256(storage.url.encode()).hexdigest()[:16]
    place = folder / (PurePosixPath(urlsplit(storage.url).path).name or "files")
    if place not in _UP_TO_DATE:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", interrupt):
            _update(storage, place, folder / "copied.jsonl", progress, interrupt)
        _UP_TO_DATE.add(place)
    return place


def _update(storage: Storage, place: Path, journal: Path, progress: Progress, interrupt: Interrupt) -> None:
    """
    Args:
        journal: a line for each file that was copied, with its status then.
    """
    there = storage.list()
    if not there:
        raise StorageError(f"{storage.url}: there is no file")
    for name in there:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise StorageError(f"{storage.url}: found a file {name!r}, expected names inside the folder")
    copied = dict(_copied(journal))
    for path in [path for path in place.rglob("*") if path.is_file()]:
        if path.relative_to(place).as_posix() not in there:
            path.unlink()
    lacking = [
        (name, status)
        for name, status in there.items()
        if copied.get(name) != status or not _has_size(place / name, status.size)
    ]

    def fetch(one: tuple[str, Status]) -> tuple[str, Status]:
        target = place / one[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(one[0], target, one[1].size)
        return one

    with ThreadPoolExecutor(_WORKERS) as pool, progress.task(f"copy {storage.url}", total=len(there)) as task:
        task.advance(len(there) - len(lacking))
        try:
            for name, status in pool.map(fetch, lacking):
                append_text(journal, json.dumps([name, *status]) + "\n")
                task.advance()
                interrupt.check()
        finally:
            pool.shutdown(cancel_futures=True)


def _copied(journal: Path) -> Iterator[tuple[str, Status]]:
    with contextlib.suppress(FileNotFoundError):
        for line in journal.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # cut off by a kill
                name, size, stamp = json.loads(line)
                yield name, Status(size, stamp)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
