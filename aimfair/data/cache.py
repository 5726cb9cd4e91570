"""Images decoded once: the pixels of a list of files as one memory map, shared by all runs.

An entry is ``<key>.json`` and ``<key>.rgb``, raw uint8 [G, S, S, 3], which gets its name last, when it is whole. The
key is a digest of the decoder, of what is asked of it and of each file's path, size and time of change, so no entry is
ever out of date; any may be deleted at any time.

While an entry is made its pixels are added to ``<key>.part`` and, once they are on disk, what is known of their files
to ``<key>.jsonl``: whoever is killed is continued by the next one that asks for the same.
"""

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL

from aimfair.base.errors import AimfairError
from aimfair.base.files import append_text, cache_folder, remove_temporaries, sync, write_json, write_text
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lock import locked
from aimfair.base.progress import Progress
from aimfair.data import decode
from aimfair.data.catalogue import Rejected

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MAX_WORKERS = 16  # each may hold a whole image of data.max_pixels

_STEP = 256
"""Files that are decoded anew after a stop, at most."""


@dataclass(frozen=True)
class Decoded:
    """The images among F files.

    Attributes:
        images: uint8 [G, S, S, 3], in the order of the files; a memory map that is read only.
        kept: int64 [G], ascending, the numbers of their files.
        digests: G texts, equal for equal pixels (:func:`aimfair.data.decode.content_digest`).
        rejected: the other F - G files.
    """

    images: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.int64]
    digests: tuple[str, ...]
    rejected: tuple[Rejected, ...]


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/aimfair/images``, or ``~/.cache/aimfair/images``."""
    return cache_folder("images")


def decode_files(
    root: Path,
    files: Sequence[str],
    size: int,
    max_pixels: int,
    *,
    fit: decode.Fit = "crop",
    folder: Path | None = None,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> Decoded:
    """The images in ``files``, paths relative to ``root``, each as :func:`aimfair.data.decode.decode` gives it.

    Args:
        size: S, pixels along each side.
        max_pixels: larger files are rejected.
        fit: how images become squares, as :func:`aimfair.data.decode.fit`.
        folder: where the entry is, or is made; None: :func:`default_folder`. One process at a time decodes into it.

    Raises:
        AimfairError: the entry cannot be written.
        Interrupted: as ``interrupt`` says; the next call goes on from there.
    """
    folder = default_folder() if folder is None else folder
    key = _key(root, files, size, max_pixels, fit)
    try:
        found = _read(folder, key, files, size)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", interrupt):
            found = _read(folder, key, files, size)  # by whoever held the lock until now
            if found is None:
                remove_temporaries(folder)
                _build(folder, key, root, files, size, max_pixels, fit, progress or Progress(quiet=True), interrupt)
                found = _read(folder, key, files, size)
    except OSError as error:
        gigabytes = len(files) * size * size * 3 / 1e9
        raise AimfairError(
            f"{folder}: decoded images cannot be kept there: {error}; expected a folder that can be written, mapped"
            f" into memory, and has {gigabytes:.1f} GB free (another folder: set XDG_CACHE_HOME)"
        ) from error
    if found is None:
        raise AimfairError(f"{folder}: decoded images were removed while they were written; run again")
    return found


def _key(root: Path, files: Sequence[str], size: int, max_pixels: int, fit: decode.Fit) -> str:
    digest = hashlib.sha256(
        repr((decode.VERSION, PIL.__version__, size, max_pixels, fit, str(root.resolve()))).encode()
    )
    for file in files:
        try:
            status = (root / file).stat()
            facts = (file, status.st_size, status.st_mtime_ns)
        except OSError:
            facts = (file, -1, 0)
        digest.update(repr(facts).encode())
    return digest.hexdigest()[:32]


def _read(folder: Path, key: str, files: Sequence[str], size: int) -> Decoded | None:
    """The entry; None if there is none, or none that can be believed."""
    pixels = folder / f"{key}.rgb"
    try:
        index = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        kept = np.array(index["kept"], dtype=np.int64)
        digests = tuple(index["digests"])
        rejected = tuple(Rejected(files[number], reason) for number, reason in index["rejected"])
        shape = (len(kept), size, size, 3)
        if pixels.stat().st_size != np.prod(shape):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return None
    # Read only: for a private map that can be written to, the system would set aside as much memory as it is large.
    images = np.asarray(np.memmap(pixels, np.uint8, "r", shape=shape)) if len(kept) else np.empty(shape, np.uint8)
    return Decoded(images, kept, digests, rejected)


@dataclass
class _Outcome:
    """Of the first ``files`` files: the numbers and digests of the images, the numbers and reasons of the others."""

    files: int = 0
    kept: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)

    def add(self, digest: str | None, reason: str = "") -> None:
        """The next file; ``digest`` None: it is rejected."""
        if digest is None:
            self.rejected.append((self.files, reason))
        else:
            self.kept.append(self.files)
            self.digests.append(digest)
        self.files += 1


def _build(
    folder: Path,
    key: str,
    root: Path,
    files: Sequence[str],
    size: int,
    max_pixels: int,
    fit: decode.Fit,
    progress: Progress,
    interrupt: Interrupt,
) -> None:
    def decode_one(file: str) -> tuple[npt.NDArray[np.uint8], str] | str:
        try:
            image = decode.read_rgb(root / file, max_pixels)
            return decode.fit(image, size, fit), decode.content_digest(image)
        except decode.ImageError as error:
            return error.reason

    part, journal = folder / f"{key}.part", folder / f"{key}.jsonl"
    # Written as a stream, not through a memory map: there a full disk is SIGBUS, here it is an error.
    try:
        outcome = _continue(part, journal, size)
        with (
            part.open("ab") as stream,
            progress.task("decode images", total=len(files)) as task,
            contextlib.closing(_map_in_order(decode_one, files[outcome.files :])) as results,
        ):
            task.advance(outcome.files)
            written = (outcome.files, len(outcome.kept), len(outcome.rejected))
            for result in results:
                if isinstance(result, str):
                    outcome.add(None, result)
                else:
                    pixels, digest = result
                    stream.write(pixels.tobytes())
                    outcome.add(digest)
                if outcome.files - written[0] == _STEP or outcome.files == len(files):
                    stream.flush()
                    os.fsync(stream.fileno())
                    _note(journal, outcome, written[1:])
                    written = (outcome.files, len(outcome.kept), len(outcome.rejected))
                task.advance()
                interrupt.check()
        # In this order: whoever is killed in between is continued, with nothing left to decode.
        write_json(
            folder / f"{key}.json",
            {"kept": outcome.kept, "digests": outcome.digests, "rejected": outcome.rejected},
        )
        os.replace(part, folder / f"{key}.rgb")
        sync(folder)
    except OSError:  # of a full disk, which must not stay full
        part.unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        raise
    journal.unlink(missing_ok=True)


def _note(journal: Path, outcome: _Outcome, known: tuple[int, int]) -> None:
    """Adds to the journal what is new in ``outcome`` after the ``known`` images and rejected files."""
    kept, rejected = known
    new = {
        "files": outcome.files,
        "kept": outcome.kept[kept:],
        "digests": outcome.digests[kept:],
        "rejected": outcome.rejected[rejected:],
    }
    append_text(journal, json.dumps(new) + "\n")


def _continue(part: Path, journal: Path, size: int) -> _Outcome:
    """What an earlier call got done; both files are cut back to it."""
    done = _Outcome()
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        pixels = part.stat().st_size
        for line in journal.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                new = json.loads(line)
            except ValueError:  # it was being written
                break
            if not line.endswith("\n") or (len(done.kept) + len(new["kept"])) * size * size * 3 > pixels:
                break
            done.files = new["files"]
            done.kept += new["kept"]
            done.digests += new["digests"]
            done.rejected += [(number, reason) for number, reason in new["rejected"]]
            lines.append(line)
    part.open("ab").close()
    os.truncate(part, len(done.kept) * size * size * 3)
    write_text(journal, "".join(lines))
    return done


def _map_in_order(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result]:
    """``map`` over threads (Pillow leaves the GIL while it decodes), never far ahead of whoever takes the results."""
    workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
