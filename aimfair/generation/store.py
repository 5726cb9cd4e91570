"""Where the images of a set are: each in a file of its own, or many in one tar file. A job sees one interface.

An image is known by a name of number and digest, ``000123-0123456789ab.webp``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from PIL import Image

from aimfair.base.files import replace_file
from aimfair.data.decode import ImageError, content_digest, read_rgb
from aimfair.generation.manifest import DIGITS, IMAGES, MAX_PIXELS, ImageRecord
from aimfair.generation.settings import GenerateSettings

_THREADS = 4  # that decode images
_AT_ONCE = 1024  # images whose checks are planned; each takes a kilobyte meanwhile

Item = TypeVar("Item")


class ImageStore(Protocol):
    """The images of a set while a job makes them. Names that are put have not been there before, or were damaged."""

    def put(self, name: str, data: bytes) -> None:
        """Adds an encoded image; called by several threads.

        Raises:
            OSError: it cannot be written.
        """

    def flush(self) -> None:
        """What was put is on disk when this returns."""

    def close(self) -> None:
        """Closes what :meth:`put` has opened; it may be called again."""

    def names(self) -> list[str]:
        """All that are there, whole or damaged."""

    def read_rgb(self, name: str) -> Image.Image:
        """As :func:`aimfair.data.decode.read_rgb`."""

    def intact(self, names: Iterable[str]) -> set[str]:
        """Those that are there and whose pixels match the digest in their name."""

    def keep(self, names: Iterable[str]) -> None:
        """Removes the others, as far as they can be removed one by one."""

    def finish(self, names: Sequence[str], records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        """Puts the images where they stay, as the result is read to its end: the records, with their places.

        Args:
            names: of the images, all of which are there.
            records: in the order of their numbers; their files have these names.

        Raises:
            OSError: a file cannot be written.
        """


def open_store(folder: Path, settings: GenerateSettings, writer: int = 0) -> ImageStore:
    """The images in the folder of a set.

    Args:
        writer: number of the process among those that put images at the same time.
    """
    if settings.storage == "webdataset":
        from aimfair.generation.tar_store import TarStore

        return TarStore(folder, settings.images_per_shard, writer)
    return FileStore(folder)


def check_digests(
    images: Iterable[Item], read: Callable[[Item], Image.Image], key: Callable[[Item], str]
) -> Iterator[tuple[Item, bool]]:
    """Of each image, whether its pixels match the digest in its name; in parallel.

    Args:
        read: may raise ImageError.
        key: gives the name.
    """

    def is_intact(image: Item) -> bool:
        try:
            return content_digest(read(image))[:DIGITS] == PurePosixPath(key(image)).stem[-DIGITS:]
        except ImageError:
            return False

    left = iter(images)
    with ThreadPoolExecutor(_THREADS) as threads:
        while some := list(islice(left, _AT_ONCE)):
            yield from zip(some, threads.map(is_intact, some), strict=True)


class FileStore:
    """``images/<name>``. See :class:`ImageStore`."""

    def __init__(self, folder: Path):
        self._folder = folder / IMAGES

    def put(self, name: str, data: bytes) -> None:
        """Its file is on disk at once."""
        with replace_file(self._folder / name) as temporary:
            temporary.write_bytes(data)

    def flush(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is open."""

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if not path.is_dir()]

    def read_rgb(self, name: str) -> Image.Image:
        return read_rgb(self._folder / name, MAX_PIXELS)

    def intact(self, names: Iterable[str]) -> set[str]:
        return {name for name, good in check_digests(names, self.read_rgb, key=str) if good}

    def keep(self, names: Iterable[str]) -> None:
        """Folders among the images stay."""
        known = set(names)
        for name in self.names():
            if name not in known:
                (self._folder / name).unlink()

    def finish(self, names: Sequence[str], records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        return iter(records)
