"""Images decoded once: the pixels of a list of files as one memory map, shared by all runs.

An entry is ``<key>.rgb``, raw uint8 [G, S, S, 3], and ``<key>.json``, which is written last and vouches for it. The key
is a digest of the decoder, of what is asked of it and of each file's path, size and time of change, so no entry is ever
out of date; any may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL

from aimfair.cache import cache_folder, locked
from aimfair.data import decode
from aimfair.data.catalogue import Rejected
from aimfair.errors import AimfairError
from aimfair.files import remove_temporaries, replace_file, write_json
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.progress import Progress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MAX_WORKERS = 16  # each may hold a whole image of data.max_pixels


@dataclass(frozen=True)
class Decoded:
    """The images among F files.

    Attributes:
        images: uint8 [G, S, S, 3], in the order of the files; a memory map whose changes stay in memory.
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
        Interrupted: as ``interrupt`` says; nothing is left behind.
    """
    folder = default_folder() if folder is None else folder
    key = _key(root, files, size, max_pixels, fit)
    found = _read(folder, key, files, size)
    if found is not None:
        return found
    try:
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
            f"{folder}: decoded images cannot be kept there: {error}; it must be writable, with {gigabytes:.1f} GB free"
            " (another folder: set XDG_CACHE_HOME)"
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
    # Copy on write: torch warns of arrays that it may not write to.
    images = np.asarray(np.memmap(pixels, np.uint8, "c", shape=shape)) if len(kept) else np.empty(shape, np.uint8)
    return Decoded(images, kept, digests, rejected)


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

    kept: list[int] = []
    digests: list[str] = []
    rejected: list[tuple[int, str]] = []
    # Written as a stream, not through a memory map: there a full disk is SIGBUS, here it is an error.
    with (
        replace_file(folder / f"{key}.rgb") as temporary,
        temporary.open("wb") as stream,
        progress.task("decode images", total=len(files)) as task,
        contextlib.closing(_map_in_order(decode_one, files)) as outcomes,
    ):
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, str):
                rejected.append((number, outcome))
            else:
                pixels, digest = outcome
                stream.write(pixels.tobytes())
                kept.append(number)
                digests.append(digest)
            task.advance()
            interrupt.check()
    write_json(folder / f"{key}.json", {"kept": kept, "digests": digests, "rejected": rejected})


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
