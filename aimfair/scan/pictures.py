"""What can be told of every picture by its header and its decoded pixels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.interrupt import Interrupt
from aimfair.base.progress import Progress
from aimfair.data.decode import open_image, turned
from aimfair.data.dhash import dhash
from aimfair.scan.results import EXAMPLES, Extent, Pictures, readable

_SMALL = 32  # pixels along each side of what hash and thumbnail are made of
_THUMBNAIL = 16
_BRIGHT = 32  # of 255; 12 bits in files of 16 come to 15 at most


@dataclass(frozen=True)
class Looks:
    """N pictures.

    Attributes:
        width, height: int64 [N], as they are seen, upright; format: N of JPEG, PNG, WEBP.
        grey: bool [N], whether the three colours are equal everywhere; dark: bool [N], whether nothing is bright.
        hashes: uint64 [N], dHashes of their central squares.
        thumbnails: uint8 [N, 16, 16], their brightness.
    """

    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    format: tuple[str, ...]
    grey: npt.NDArray[np.bool_]
    dark: npt.NDArray[np.bool_]
    hashes: npt.NDArray[np.uint64]
    thumbnails: npt.NDArray[np.uint8]

    def summary(self, image_size: int, files: Sequence[str]) -> Pictures | None:
        """None of no pictures; ``files`` are their names."""
        if not self.format:
            return None
        longer, shorter = np.maximum(self.width, self.height), np.minimum(self.width, self.height)
        return Pictures(
            images=len(self.format),
            width=_extent(self.width),
            height=_extent(self.height),
            elongation=_extent(longer / shorter),
            not_square=int((longer != shorter).sum()),
            smaller=int((shorter < image_size).sum()),
            grey=int(self.grey.sum()),
            dark=int(self.dark.sum()),
            dark_examples=[readable(files[number]) for number in np.flatnonzero(self.dark)[:EXAMPLES]],
            formats=dict(sorted(Counter(self.format).items())),
        )


def look(
    root: Path,
    files: Sequence[str],
    squares: Iterable[npt.NDArray[np.uint8]],
    progress: Progress,
    interrupt: Interrupt,
) -> Looks:
    """Looks at every picture.

    Args:
        files: N paths relative to ``root``, of files that can be decoded.
        squares: of each uint8 [S, S, 3], as it was decoded; S may differ.
    """
    n = len(files)
    sizes = np.zeros((2, n), dtype=np.int64)
    formats: list[str] = []
    grey, dark = np.zeros((2, n), dtype=np.bool_)
    hashes = np.zeros(n, dtype=np.uint64)
    thumbnails = np.zeros((n, _THUMBNAIL, _THUMBNAIL), dtype=np.uint8)
    with progress.task("look at images", total=n) as task:
        for number, (file, square) in enumerate(zip(files, squares, strict=True)):
            with (root / file).open("rb") as stream:
                header = open_image(root / file, stream)
                sizes[:, number] = header.size[::-1] if turned(header) else header.size
                formats.append(str(header.format))
            grey[number] = np.array_equal(square[..., 0], square[..., 1]) and np.array_equal(
                square[..., 1], square[..., 2]
            )
            dark[number] = square.max() < _BRIGHT
            small = Image.fromarray(np.asarray(square))
            if small.width > _SMALL:
                small = small.resize((_SMALL, _SMALL), Image.Resampling.BOX)
            hashes[number] = int(dhash(small), 16)
            thumbnails[number] = np.asarray(small.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
            task.advance()
            interrupt.check()
    return Looks(sizes[0], sizes[1], tuple(formats), grey, dark, hashes, thumbnails)


def _extent(values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> Extent:
    """Rounded to what a person reads."""
    least, median, greatest = (round(float(function(values)), 3) for function in (np.min, np.median, np.max))
    return Extent(least=least, median=median, greatest=greatest)
