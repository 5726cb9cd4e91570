"""Parquet files with a column of encoded images, as bytes or as Hugging Face's ``Image`` (a struct with ``bytes``), and
columns of labels.

The name of an image is the number of its row, from 0. Labels are read at every start, images by row groups.
"""

import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import IO, Any

from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.data import decode, parquet_file, rows, shards
from aimfair.data.catalogue import Catalogue, unknown_name
from aimfair.data.settings import DataSettings
from aimfair.data.shards import Root, Shard

_IMAGE = "image"
_DIGITS = 9  # of a row's number: in names, as in files, rows are in order
_GROUPS = 4
"""Row groups in memory. Threads that decode rows in order read from at most two."""


def read(root: Root, settings: DataSettings) -> Catalogue:
    """The images of all Parquet files in ``root``.

    Raises:
        ConfigError: a column does not exist.
        AimfairError: there is no such file, one cannot be read, or pyarrow is not installed.
    """
    found = shards.find(root, settings)
    image = settings.image_column or _IMAGE
    for shard in found:
        if image not in (names := parquet_file.header(root / shard.name)):
            raise unknown_name("data.image_column", image, names, f"{root / shard.name}")
    labels = [(shard, _rows(root, shard.name, settings)) for shard in found]
    return shards.catalogue(root, settings, labels, _RowGroups(root, found, image))


def _rows(root: Root, shard: str, settings: DataSettings) -> Iterator[shards.Row]:
    for number, cells in rows.rows(root / shard, shards.columns(settings)):
        yield f"{shard}/{number - 1:0{_DIGITS}d}", cells if isinstance(cells, str) else tuple(cells)


class _RowGroups:
    """Images in Parquet files; the last few row groups stay in memory."""

    def __init__(self, root: Root, found: Sequence[Shard], column: str):
        self._root, self._column = root, column
        self._status = {shard.name: shard.status for shard in found}
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()  # values, or why they cannot be read
        self._ends: dict[str, list[int]] = {}  # of a file's row groups, in rows
        self._lock = threading.Lock()

    def facts(self, files: Sequence[str]) -> Iterator[object]:
        """Folder and column, and status of each file before the numbers of its rows."""
        yield f"{shards.place(self._root)} {self._column}"
        begins = ""
        for file in files:
            shard = file[: -_DIGITS - 1]
            if shard != begins:
                begins = shard
                yield shard, *self._status[shard]
            yield file

    def open(self, file: str) -> IO[bytes]:
        return io.BytesIO(self._bytes(file))

    def read_rgb(self, file: str, max_pixels: int) -> Image.Image:
        return decode.rgb_of_bytes(self._root / file, self._bytes(file), max_pixels)

    def _bytes(self, file: str) -> bytes:
        shard, row = file[: -_DIGITS - 1], int(file[-_DIGITS:])
        value = self._value(shard, row).as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            what = "no bytes" if value is None else type(value).__name__
            raise decode.ImageError(self._root / file, f"{self._column!r} has {what}, expected an encoded image")
        return value

    def _value(self, shard: str, row: int) -> Any:
        with self._lock:
            if shard not in self._ends:
                self._ends[shard] = parquet_file.group_ends(self._root / shard)
            ends = self._ends[shard]
            group = bisect_right(ends, row)
            values = self._groups.pop((shard, group), None)
            if values is None:
                try:
                    values = parquet_file.column(self._root / shard, self._column, group)
                except AimfairError as error:
                    values = str(error)
            self._groups[shard, group] = values
            if len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
        if isinstance(values, str):
            raise decode.ImageError(self._root / f"{shard}/{row:0{_DIGITS}d}", values)
        return values[row - (ends[group - 1] if group else 0)]
