"""Where the encoded images of a data set are: each in a file of its own, or many in one."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from PIL import Image

from aimfair.base.storage import read_part
from aimfair.data import decode


class Source(Protocol):
    """Encoded images by name; may be called by several threads."""

    def facts(self, files: Sequence[str]) -> Iterator[object]:
        """What differs once the bytes of one of these images have changed; printable."""

    def open(self, file: str) -> IO[bytes]:
        """The bytes of an image.

        Raises:
            OSError: it cannot be read.
        """

    def read_rgb(self, file: str, max_pixels: int) -> Image.Image:
        """As :func:`aimfair.data.decode.read_rgb`."""


class Folder:
    """Files below ``root``."""

    def __init__(self, root: Path):
        self._root = root

    def facts(self, files: Sequence[str]) -> Iterator[object]:
        """Folder, and each file's path, size and modification time."""
        yield str(self._root.resolve())
        for file in files:
            try:
                status = (self._root / file).stat()
                yield file, status.st_size, status.st_mtime_ns
            except OSError:
                yield file, -1, 0

    def open(self, file: str) -> IO[bytes]:
        return (self._root / file).open("rb")

    def read_rgb(self, file: str, max_pixels: int) -> Image.Image:
        return decode.read_rgb(self._root / file, max_pixels)


class Members:
    """Images in tar files below ``root``, at known places.

    Args:
        places: name of an image, its tar file's with "/" and its own -> its place in that, and its bytes.
    """

    def __init__(self, root: Path, places: Mapping[str, tuple[int, int]]):
        self._root, self._places = root, places

    def facts(self, files: Sequence[str]) -> Iterator[object]:
        """Folder, and path, size and modification time of each tar file before the names of its images."""
        yield str(self._root.resolve())
        before = ""
        for file in files:
            tar = file.rpartition("/")[0]
            if tar != before:
                before = tar
                try:
                    status = (self._root / tar).stat()
                    yield tar, status.st_size, status.st_mtime_ns
                except OSError:
                    yield tar, -1, 0
            yield file

    def open(self, file: str) -> IO[bytes]:
        offset, size = self._places[file]
        return io.BytesIO(read_part(self._root / file.rpartition("/")[0], offset, size))

    def read_rgb(self, file: str, max_pixels: int) -> Image.Image:
        try:
            data = self.open(file).read()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise decode.ImageError(self._root / file, "no such file") from error
        return decode.rgb_of_bytes(self._root / file, data, max_pixels)
