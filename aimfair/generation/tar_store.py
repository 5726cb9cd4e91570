"""Images in tar files of many, for sets of a million: WebDataset shards.

While a job runs, each process appends what it makes to pieces of its own, ``shards/<writer>-<number>.tar``. At the end
they are copied, in the order of their numbers, to ``images/<shard>.tar``, each image with a .json of its labels and
prompt. These depend on the images alone, not on who made them in which order. A piece is removed once it is copied.
"""

import contextlib
import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from aimfair.base.files import naming, replace_file
from aimfair.base.storage import read_part
from aimfair.data.decode import rgb_of_bytes
from aimfair.generation.manifest import IMAGES, MAX_PIXELS, ImageRecord
from aimfair.generation.store import check_digests

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 2**28  # bytes, from which another is begun
_FIELDS = {"image", "y", "a", "prompt", "text", "replica", "seed", "sets", "pair"}  # of a record, in the .json


class _Place(NamedTuple):
    """Bytes of an image in a tar file."""

    path: Path
    name: str
    offset: int
    size: int


_Index = dict[str, list[_Place]]


class TarStore:
    """See :class:`aimfair.generation.store.ImageStore`.

    Args:
        folder: of the set.
        size: images of a shard: number n is in shard n // size.
        writer: number of this process.
    """

    def __init__(self, folder: Path, size: int, writer: int):
        self._folder, self._size, self._writer = folder, size, writer
        self._pieces = folder / "shards"
        self._lock = threading.Lock()
        self._piece: FileIO | None = None
        self._bad: set[_Place] = set()
        self._index: _Index | None = None  # as the last scan found it, if nothing was put since

    def put(self, name: str, data: bytes) -> None:
        """It is in the current piece, or no part of it if it cannot be written."""
        member = memoryview(_member(name, data))
        with self._lock:
            self._index = None
            if self._piece is None:
                self._piece = self._begin()
            begin = self._piece.tell()
            try:
                with naming(Path(self._piece.name)):
                    _write(self._piece, member)
            except OSError:
                with contextlib.suppress(OSError):
                    self._piece.truncate(begin)
                    self._piece.seek(begin)
                raise

    def flush(self) -> None:
        with self._lock:
            if self._piece is None:
                return
            with naming(Path(self._piece.name)):
                os.fsync(self._piece.fileno())
            if self._piece.tell() >= _PIECE:
                self._close()

    def close(self) -> None:
        with self._lock:
            self._close()

    def names(self) -> list[str]:
        return list(self._there())

    def read_rgb(self, name: str) -> Image.Image:
        return self._decode(self._choose(self._there()[name]))

    def intact(self, names: Iterable[str]) -> set[str]:
        """Remembers the places of others, which are not used again."""
        there = self._there()
        places = [place for name in names for place in there.get(name, ())]
        found = dict(check_digests(places, self._decode, key=lambda place: place.name))
        self._bad |= {place for place, good in found.items() if not good}
        return {place.name for place, good in found.items() if good}

    def keep(self, names: Iterable[str]) -> None:
        """Removes the pieces without any of them; shards stay until they are written again."""
        if pieces := self._paths(self._pieces):
            known = set(names)
            needed = {place.path for name, places in self._there().items() if name in known for place in places}
            for path in pieces:
                if path not in needed:
                    path.unlink()
        self._index = None

    def finish(self, names: Sequence[str], records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        there = self._scan()  # other processes have put some
        left = Counter(self._choose(there[name]).path for name in names)
        in_shards: dict[Path, list[_Place]] = {}
        for places in there.values():
            for place in places:
                in_shards.setdefault(place.path, []).append(place)
        shards = set()
        for number, of_shard in groupby(records, key=lambda record: record.image // self._size):
            members = list(of_shard)
            shard = self._folder / IMAGES / f"{number:05d}.tar"
            shards.add(shard)
            yield from self._write_shard(shard, members, there, in_shards.get(shard, []))
            left.subtract(self._choose(there[_name(record)]).path for record in members)
            for path in [path for path, count in left.items() if count == 0 and path.parent == self._pieces]:
                path.unlink(missing_ok=True)
                del left[path]
        for path in self._paths(self._folder / IMAGES):
            if path not in shards:
                path.unlink()
        self._index = None

    def _write_shard(
        self, shard: Path, records: Sequence[ImageRecord], there: _Index, inside: Sequence["_Place"]
    ) -> list[ImageRecord]:
        """Writes it unless it is there with exactly these images, none of which is damaged.

        Args:
            inside: what it holds now.
        """
        contents: list[tuple[str, bytes | _Place]] = []
        for record in records:
            name = _name(record)
            contents += [(name, self._choose(there[name])), (f"{Path(name).stem}.json", _labels(record))]
        offsets, end = [], 0
        for _, content in contents:
            size = len(content) if isinstance(content, bytes) else content.size
            offsets.append(end + _BLOCK)
            end += _BLOCK + _padded(size)
        end = -(-(end + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        whole = [name for name, content in contents if isinstance(content, _Place)] == [one.name for one in inside]
        if not (whole and shard.stat().st_size == end and self._bad.isdisjoint(inside)):
            with replace_file(shard) as temporary, temporary.open("wb") as file:
                for name, content in contents:
                    data = content if isinstance(content, bytes) else read_part(content.path, *content[2:])
                    file.write(_member(name, data))
                file.write(bytes(end - file.tell()))
        sizes = [content.size for _, content in contents if isinstance(content, _Place)]
        return [
            record.model_copy(update={"file": f"{IMAGES}/{shard.name}/{_name(record)}", "place": (offset, size)})
            for record, offset, size in zip(records, offsets[::2], sizes, strict=True)
        ]

    def _begin(self) -> FileIO:
        """A new piece of this process."""
        self._pieces.mkdir(exist_ok=True)
        known = [int(path.stem.partition("-")[2]) for path in self._pieces.glob(f"{self._writer}-*.tar")]
        return (self._pieces / f"{self._writer}-{max(known, default=-1) + 1:05d}.tar").open("xb", buffering=0)

    def _close(self) -> None:
        if self._piece is not None:
            self._piece.close()
            self._piece = None

    def _paths(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("[0-9]*.tar"))

    def _there(self) -> _Index:
        """As the last scan found it, or a new one."""
        return self._scan() if self._index is None else self._index

    def _scan(self) -> _Index:
        """Name -> its places, those in shards before those in pieces."""
        found: _Index = {}
        for path in (*self._paths(self._folder / IMAGES), *self._paths(self._pieces)):
            for place in _images(path):
                found.setdefault(place.name, []).append(place)
        self._index = found
        return found

    def _choose(self, places: Sequence["_Place"]) -> "_Place":
        """One that is not damaged."""
        return next(place for place in places if place not in self._bad)

    def _decode(self, place: "_Place") -> Image.Image:
        data = read_part(place.path, place.offset, place.size)
        return rgb_of_bytes(place.path / place.name, data, MAX_PIXELS)


def _name(record: ImageRecord) -> str:
    return record.file.rpartition("/")[2]


def _images(path: Path) -> Iterator[_Place]:
    """The images in a tar file, up to where it is cut off or damaged."""
    length = path.stat().st_size
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
                if member.offset_data + member.size > length:
                    return
                if not member.name.endswith(".json"):
                    yield _Place(path, member.name, member.offset_data, member.size)
    except tarfile.TarError:
        return


def _member(name: str, data: bytes) -> bytes:
    """A member of a tar file; the same bytes for the same arguments."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.GNU_FORMAT) + data + bytes(_padded(len(data)) - len(data))


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _labels(record: ImageRecord) -> bytes:
    return (json.dumps(record.model_dump(include=_FIELDS), ensure_ascii=False) + "\n").encode()


def _write(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
