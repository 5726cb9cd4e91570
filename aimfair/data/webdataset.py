"""WebDataset: tar files in which the members ``key.jpg``, ``key.json``, ``key.cls`` in a row are one sample.

A column is a field of a sample's ``.json``, or the extension of a member that is its text (``cls``, ``gender.txt``).
Each file is read through once. The places and labels of its images are kept in the cache; images are read by place.
"""

import contextlib
import hashlib
import io
import itertools
import json
import tarfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import cache_folder, write_text
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lock import locked
from aimfair.base.progress import Progress
from aimfair.base.settings import Record
from aimfair.base.storage import File, read_part, reading
from aimfair.data import decode, shards
from aimfair.data.catalogue import IMAGE_SUFFIXES, Catalogue, unknown_name
from aimfair.data.encoded import map_in_order
from aimfair.data.rows import kind_of, text_of
from aimfair.data.settings import DataSettings
from aimfair.data.shards import Root, Shard

_VERSION = 1
"""Increase this when an index says other things of the same file."""

_BLOCK = 512
_MOST_LABELS = 2**20
"""Bytes of a member that holds labels."""


def read(
    root: Root, settings: DataSettings, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> Catalogue:
    """The images of all tar files in ``root``.

    Raises:
        ConfigError: no sample has a column.
        AimfairError: there is no tar file, or one is damaged.
        Interrupted: as ``interrupt`` says; files that have been read through are not read again.
    """
    found = shards.find(root, settings)
    columns = shards.columns(settings)
    names = [name for _, name in columns]
    indices = _indices(root, found, names, settings.image_column, progress or Progress(quiet=True), interrupt)
    known = sorted({name for index in indices for name in index.known})
    for key, name in columns:
        if known and name not in known:
            raise unknown_name(key, name, known, str(root))
    rows = [(shard, _rows(shard.name, index, names)) for shard, index in zip(found, indices, strict=True)]
    return shards.catalogue(root, settings, rows, _Members(root, found, indices))


class _Column(Record):
    """Values of N images: ``texts[numbers[n]]``."""

    texts: list[str]
    numbers: list[int]


class _Index(Record):
    """What a tar file holds.

    Attributes:
        images, offsets, sizes: name, place and bytes of each image, sorted by name.
        columns: name -> its values.
        known: the columns that any sample has.
        rejected: (key, reason) of unusable samples.
    """

    images: list[str]
    offsets: list[int]
    sizes: list[int]
    columns: dict[str, _Column]
    known: list[str]
    rejected: list[tuple[str, str]]


def _rows(shard: str, index: _Index, names: Sequence[str]) -> Iterator[shards.Row]:
    columns = [index.columns[name] for name in names]
    cells = [map(column.texts.__getitem__, column.numbers) for column in columns]
    for image, *values in zip(index.images, *cells, strict=True):
        yield f"{shard}/{image}", tuple(values)
    for key, reason in index.rejected:
        yield f"{shard}/{key}", reason


class _Members:
    """Images in tar files, by names that begin with the file's.

    Args:
        found: sorted as :func:`aimfair.data.shards.find` does.
    """

    def __init__(self, root: Root, found: Sequence[Shard], indices: Sequence[_Index]):
        self._root, self._found = root, found
        self._begins = [f"{shard.name}/" for shard in found]
        self._images = [index.images for index in indices]
        self._places = [np.array([index.offsets, index.sizes], dtype=np.int64) for index in indices]

    def facts(self, files: Sequence[str]) -> Iterator[object]:
        """Folder, and name and status of each tar file before the names of its images."""
        yield shards.place(self._root)
        begins = "/"
        for file in files:
            if not file.startswith(begins):
                shard = self._found[self._shard(file)]
                begins = f"{shard.name}/"
                yield _VERSION, shard.name, *shard.status
            yield file

    def open(self, file: str) -> IO[bytes]:
        shard, offset, size = self._find(file)
        return io.BytesIO(read_part(self._root / shard, offset, size))

    def read_rgb(self, file: str, max_pixels: int) -> Image.Image:
        path = self._root / file
        decode.refuse_size(path, self._find(file)[2], max_pixels)
        return decode.rgb_of_bytes(path, self.open(file).read(), max_pixels)

    def _shard(self, file: str) -> int:
        return bisect_right(self._begins, file) - 1

    def _find(self, file: str) -> tuple[str, int, int]:
        """Tar file, place in it, and bytes of an image."""
        shard = self._shard(file)
        begins = self._begins[shard]
        offset, size = self._places[shard][:, bisect_left(self._images[shard], file.removeprefix(begins))].tolist()
        return begins.removesuffix("/"), offset, size


def _indices(
    root: Root,
    found: Sequence[Shard],
    columns: list[str],
    image: str | None,
    progress: Progress,
    interrupt: Interrupt,
) -> list[_Index]:
    """The index of each tar file, from the cache if it is there; one process at a time reads through files."""
    folder = cache_folder("shards")
    places = [folder / f"{_key_of(root, shard, columns, image)}.json" for shard in found]
    known = [_read_index(place) for place in places]
    if None not in known:
        return [index for index in known if index is not None]
    folder.mkdir(parents=True, exist_ok=True)

    def index_of(number: int) -> _Index:
        if (there := _read_index(places[number])) is not None:  # another process has read it meanwhile
            return there
        index = _read_through(root / found[number].name, columns, image)
        write_text(places[number], json.dumps(index.model_dump()))
        return index

    lacking = [number for number, index in enumerate(known) if index is None]
    with (
        locked(folder / "lock", interrupt),
        progress.task("index tar files", len(found), len(found) - len(lacking)) as task,
        contextlib.closing(map_in_order(index_of, lacking)) as results,
    ):
        for number, index in zip(lacking, results, strict=True):
            known[number] = index
            task.advance()
            interrupt.check()
    return [index for index in known if index is not None]


def _key_of(root: Root, shard: Shard, columns: list[str], image: str | None) -> str:
    facts = (_VERSION, shards.place(root), shard.name, *shard.status, columns, image)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _read_index(place: Path) -> _Index | None:
    try:
        return _Index.model_validate_json(place.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _read_through(path: File, columns: list[str], image: str | None) -> _Index:
    found: dict[str, tuple[int, int, list[str]]] = {}
    known: set[str] = set()
    rejected: list[tuple[str, str]] = []
    seen: set[str] = set()
    with reading(path) as file:
        for key, members in itertools.groupby(_members(path, file), key=lambda member: _key(member.name)):
            try:
                if key in seen:
                    raise ValueError("its key occurs before: members of a sample must follow each other")
                seen.add(key)
                sample = {member.name.removeprefix(f"{key}."): member for member in members}
                values = _values(file, sample, known)
                chosen = _image(sample, image)
                cells = [_cell(name, values) for name in columns]
            except ValueError as error:
                rejected.append((key, str(error)))
            else:
                found[chosen.name] = chosen.offset_data, chosen.size, cells
    images = sorted(found)
    rows = [found[name] for name in images]
    return _Index(
        images=images,
        offsets=[offset for offset, _, _ in rows],
        sizes=[size for _, size, _ in rows],
        columns={name: _column([cells[place] for _, _, cells in rows]) for place, name in enumerate(columns)},
        known=sorted(known),
        rejected=rejected,
    )


def _column(values: list[str]) -> _Column:
    texts = sorted(set(values))
    numbers = {text: number for number, text in enumerate(texts)}
    return _Column(texts=texts, numbers=[numbers[value] for value in values])


def _members(path: File, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The files in a tar file that belong to samples.

    Raises:
        AimfairError: it is cut off or damaged; :mod:`tarfile` takes some damage for its end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
                base = member.name.rpartition("/")[2]
                if member.isreg() and "." in base[1:] and not base.startswith(("__", "._")):
                    yield member
            file.seek(tar.offset)
            if any(file.read(_BLOCK)):
                raise tarfile.ReadError(f"no header of a member at byte {tar.offset:,}")
    except tarfile.TarError as error:
        raise AimfairError(f"{path}: cannot be read as an uncompressed tar file: {error}; copy it again") from error


def _key(name: str) -> str:
    """Of a member's sample: its path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base[0] + base[1:].partition(".")[0]


def _image(sample: dict[str, tarfile.TarInfo], extension: str | None) -> tarfile.TarInfo:
    """
    Args:
        extension: ``data.image_column``.
    """
    if extension is not None:
        if extension not in sample:
            raise ValueError(f"has no member .{extension} (data.image_column), but {_listed(sample)}")
        return sample[extension]
    images = [one for one in sample if f".{one}".lower().endswith(IMAGE_SUFFIXES)]
    if len(images) != 1:
        advice = "name one in data.image_column" if images else "expected one"
        raise ValueError(f"has {len(images)} images among {_listed(sample)}; {advice}")
    return sample[images[0]]


def _listed(sample: dict[str, tarfile.TarInfo]) -> str:
    return ", ".join(f".{extension}" for extension in sample)


def _values(file: IO[bytes], sample: dict[str, tarfile.TarInfo], known: set[str]) -> dict[str, Any]:
    """Column -> value of a sample; a text is not read yet.

    Args:
        known: is extended by them.
    """
    values: dict[str, Any] = {}
    for extension, member in sample.items():
        if extension.lower() == "json":
            values |= _fields(_labels(file, member))
    for extension, member in sample.items():
        if extension in values:
            raise ValueError(f"{extension!r} is a field of its .json and a member")
        if extension.lower() != "json" and not f".{extension}".lower().endswith(IMAGE_SUFFIXES):
            values[extension] = _Text(file, member)
    known.update(values)
    return values


class _Text:
    """A member that may be the text of a column."""

    def __init__(self, file: IO[bytes], member: tarfile.TarInfo):
        self._file, self._member = file, member

    def __str__(self) -> str:
        return _labels(self._file, self._member).strip()


def _cell(name: str, values: dict[str, Any]) -> str:
    value = values.get(name)
    text = text_of(str(value) if isinstance(value, _Text) else value)
    if text is None:
        raise ValueError(f"{name!r} is {kind_of(value)}, expected a string or a number")
    return text


def _labels(file: IO[bytes], member: tarfile.TarInfo) -> str:
    if member.size > _MOST_LABELS:
        raise ValueError(f"{member.name!r} has {member.size:,} bytes, expected at most {_MOST_LABELS:,} of labels")
    file.seek(member.offset_data)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name!r} is not UTF-8") from error


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"its .json is {type(fields).__name__}, expected an object")
    return fields
