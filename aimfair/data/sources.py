"""Where the encoded images of a data set are: each in a file of its own, or many in one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from PIL import Image

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
