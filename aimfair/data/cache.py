"""Images decoded once: the pixels of a list of files as one memory map, shared by all runs.

Without ``data.keep_decoded`` an entry has no pixels, only the digests of those of the files that can be decoded.

An entry is ``<key>.json`` and ``<key>.rgb``, raw uint8 [G, S, S, 3]; the latter is renamed into place last, when the
entry is complete. The key is a digest of the decoder, its arguments and each file's path, size and modification time,
so an entry is never out of date; any may be deleted at any time.

The index has a CRC-32 for the images of each 256 files. Whenever an entry is opened, all cores check its pixels against
them; an entry that does not match, or has none, is built again.

While an entry is built, pixels are appended to ``<key>.part`` and, once they are on disk, the facts about their files
to ``<key>.jsonl``: after a kill, the next call with the same arguments continues from there.
"""

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL

from aimfair.base.errors import AimfairError
from aimfair.base.files import (
    append_text,
    cache_folder,
    naming,
    note_needed,
    remove_temporaries,
    sync,
    write_json,
    write_text,
)
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lock import locked
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.data import decode
from aimfair.data.catalogue import Rejected
from aimfair.data.encoded import Encoded, map_in_order
from aimfair.data.images import Pixels
from aimfair.data.sources import Folder, Source

_STEP = 256
"""Files with a common checksum, between two writes to the journal, and so decoded again after a kill at most."""


@dataclass(frozen=True)
class Decoded:
    """The images among F files.

    Attributes:
        images: uint8 [G, S, S, 3], in the order of the files; a read-only memory map, or decoded when they are read.
        kept: int64 [G], ascending, the numbers of their files.
        digests: G strings, equal for equal pixels (:func:`aimfair.data.decode.content_digest`).
        rejected: the other F - G files.
    """

    images: Pixels
    kept: npt.NDArray[np.int64]
    digests: tuple[str, ...]
    rejected: tuple[Rejected, ...]


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/aimfair/images``, or ``~/.cache/aimfair/images``."""
    return cache_folder("images")


def decode_files(
    source: Path | Source,
    files: Sequence[str],
    size: int,
    max_pixels: int,
    *,
    fit: decode.Fit = "crop",
    keep: bool = True,
    folder: Path | None = None,
    log: Log = NOWHERE,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> Decoded:
    """The images in ``files``, each as :func:`aimfair.data.decode.decode` returns it.

    Args:
        source: of the files; their folder, if that is all.
        size: S, pixels along each side.
        max_pixels: larger files are rejected.
        fit: how images become squares, as :func:`aimfair.data.decode.fit`.
        keep: their pixels; False: each is decoded now for its digest or the reason why it is rejected, and again
            whenever it is read.
        folder: of the cache; None: :func:`default_folder`. One process at a time decodes into it.
        log: is warned of a damaged entry.

    Raises:
        AimfairError: the entry vanishes while it is written.
        OSError: it cannot be written, or a file not be read, for a reason that says nothing about that file.
        Interrupted: as ``interrupt`` says; the next call continues from there.
    """
    source = Folder(source) if isinstance(source, Path) else source
    request = _Request(source, files, size, max_pixels, fit, keep)
    entry = _Entry(default_folder() if folder is None else folder, request.key())
    progress = progress or Progress(quiet=True)
    try:
        found = entry.read(request)
        if found is not None:
            return found
        entry.folder.mkdir(parents=True, exist_ok=True)
        with locked(entry.folder / "lock", interrupt):
            found = entry.read(request)  # another process may have built it meanwhile
            if found is None:
                if entry.pixels.exists():
                    log.warn(f"{entry.pixels}: damaged, or of an earlier version; decoding again")
                remove_temporaries(entry.folder)
                _build(entry, request, progress, interrupt)
                found = entry.read(request)
    except OSError as error:
        note_needed(error, len(files) * request.stored_bytes)
        raise
    if found is None:
        raise AimfairError(f"{entry.folder}: decoded images were removed or changed while they were written; run again")
    return found


@dataclass(frozen=True)
class _Request:
    """Arguments of :func:`decode_files` that determine the pixels."""

    source: Source
    files: Sequence[str]
    size: int
    max_pixels: int
    fit: decode.Fit
    keep: bool

    @property
    def stored_bytes(self) -> int:
        """Of an image, in the cache."""
        return self.size * self.size * 3 if self.keep else 0

    def key(self) -> str:
        facts = self.source.facts(self.files)
        how = (decode.VERSION, PIL.__version__, self.size, self.max_pixels, self.fit, next(facts))
        digest = hashlib.sha256(repr(how).encode())
        if not self.keep:
            digest.update(b"not kept")
        for fact in facts:
            digest.update(repr(fact).encode())
        return digest.hexdigest()[:32]

    def decode(self, file: str) -> tuple[npt.NDArray[np.uint8], str] | str:
        """Pixels and content digest of a file, or the reason why it is rejected."""
        try:
            image = self.source.read_rgb(file, self.max_pixels)
            return decode.fit(image, self.size, self.fit), decode.content_digest(image)
        except decode.ImageError as error:
            return error.reason


@dataclass(frozen=True)
class _Entry:
    """The files of one entry; ``part`` and ``journal`` exist only while it is built."""

    folder: Path
    key: str

    @property
    def index(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def pixels(self) -> Path:
        return self.folder / f"{self.key}.rgb"

    @property
    def part(self) -> Path:
        return self.folder / f"{self.key}.part"

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.key}.jsonl"

    def read(self, request: _Request) -> Decoded | None:
        """The decoded images; None if there is no entry, or a damaged one."""
        try:
            index = json.loads(self.index.read_text(encoding="utf-8"))
            kept = np.array(index["kept"], dtype=np.int64)
            digests = tuple(index["digests"])
            rejected = tuple(Rejected(request.files[number], reason) for number, reason in index["rejected"])
            checksums = [(int(images), int(crc)) for images, crc in index["checksums"]]
            if self.pixels.stat().st_size != len(kept) * request.stored_bytes:
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
            return None
        if not request.keep:
            files = [request.files[number] for number in kept]
            encoded = Encoded(request.source, files, request.size, request.max_pixels, request.fit)
            return Decoded(encoded, kept, digests, rejected)
        shape = (len(kept), request.size, request.size, 3)
        # Read only: a private writable map would reserve as much memory as it is large.
        with naming(self.pixels):
            stored = np.memmap(self.pixels, np.uint8, "r", shape=shape) if len(kept) else np.empty(shape, np.uint8)
        images = np.asarray(stored)
        return Decoded(images, kept, digests, rejected) if _match(images, checksums) else None


def _match(images: npt.NDArray[np.uint8], checksums: Sequence[tuple[int, int]]) -> bool:
    """Whether the pixels, chunk by chunk, have these checksums, and all are covered by one."""
    ends = list(itertools.accumulate((count for count, _ in checksums), initial=0))
    chunks = [images[start:end] for start, end in itertools.pairwise(ends)]
    with contextlib.closing(map_in_order(_checksum, chunks)) as found:
        return ends[-1] == len(images) and all(crc == one for one, (_, crc) in zip(found, checksums, strict=True))


def _checksum(images: npt.NDArray[np.uint8]) -> int:
    return zlib.crc32(images.data)


@dataclass
class _Outcome:
    """Of the first ``files`` files: numbers and digests of the images, numbers and reasons of the rejected ones.

    ``checksums`` has the number of images of each step, and the CRC-32 of their pixels.
    """

    files: int = 0
    kept: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    checksums: list[tuple[int, int]] = field(default_factory=list)

    def extend(self, later: "_Outcome") -> None:
        """Adds the files after these; the numbers of both count from the first file."""
        self.files = later.files
        self.kept += later.kept
        self.digests += later.digests
        self.rejected += later.rejected
        self.checksums += later.checksums

    def index(self) -> dict[str, object]:
        """What is kept of a complete entry."""
        return {key: value for key, value in asdict(self).items() if key != "files"}


def _build(entry: _Entry, request: _Request, progress: Progress, interrupt: Interrupt) -> None:
    try:
        outcome = _resume(entry, request.stored_bytes)
        _decode_rest(entry, request, outcome, progress, interrupt)
        # In this order: after a kill in between, the next call resumes with nothing left to decode.
        write_json(entry.index, outcome.index())
        os.replace(entry.part, entry.pixels)
        sync(entry.folder)
    except OSError:  # such as a full disk, which must not stay full
        entry.part.unlink(missing_ok=True)
        entry.journal.unlink(missing_ok=True)
        raise
    entry.journal.unlink(missing_ok=True)


def _decode_rest(entry: _Entry, request: _Request, outcome: _Outcome, progress: Progress, interrupt: Interrupt) -> None:
    """Decodes the files after those in ``outcome``, which is extended, into the part and its journal."""
    total = len(request.files)
    # A stream, not a memory map: on a full disk a map gets SIGBUS, a stream an error.
    with (
        naming(entry.part),
        entry.part.open("ab") as stream,
        progress.task("decode images", total=total) as task,
        contextlib.closing(map_in_order(request.decode, request.files[outcome.files :])) as results,
    ):
        task.advance(outcome.files)
        new, crc = _Outcome(), 0
        for number, result in enumerate(results, outcome.files):
            if isinstance(result, str):
                new.rejected.append((number, result))
            else:
                pixels, digest = result
                if request.keep:
                    data = pixels.tobytes()
                    stream.write(data)
                    crc = zlib.crc32(data, crc)
                new.kept.append(number)
                new.digests.append(digest)
            new.files = number + 1
            if new.files - outcome.files == _STEP or new.files == total:
                stream.flush()
                os.fsync(stream.fileno())
                new.checksums = [(len(new.kept), crc)]
                append_text(entry.journal, json.dumps(asdict(new)) + "\n")
                outcome.extend(new)
                new, crc = _Outcome(), 0
            task.advance()
            interrupt.check()


def _resume(entry: _Entry, stored_bytes: int) -> _Outcome:
    """What an earlier call finished; the part and its journal are truncated to it.

    Args:
        stored_bytes: of each image.
    """
    done = _Outcome()
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        pixels = entry.part.stat().st_size
        for line in entry.journal.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                new = _Outcome(**json.loads(line))
            except (ValueError, TypeError):  # cut off by a kill
                break
            if not line.endswith("\n") or (len(done.kept) + len(new.kept)) * stored_bytes > pixels:
                break
            if not new.checksums:  # of a version before there were any
                break
            done.extend(new)
            lines.append(line)
    entry.part.open("ab").close()
    os.truncate(entry.part, len(done.kept) * stored_bytes)
    write_text(entry.journal, "".join(lines))
    return done
