"""Facts about single images, from headers and decoded pixels, and which images are copies or nearly so."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.interrupt import Interrupt
from aimfair.base.progress import Progress
from aimfair.data.catalogue import SPLITS, Catalogue
from aimfair.data.decode import dhash, open_image, turned
from aimfair.data.duplicates import contradict
from aimfair.data.duplicates import copies as copies_of
from aimfair.data.images import Splits
from aimfair.scan.results import EXAMPLES, Copies, Duplicates, Extent, ImageFacts, NearCopies, readable

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

_SAME_BITS, _SAME_GREY, _PLAIN = 3, 8, 4
"""Near-copies: dHashes that differ in so few bits at most, and brightness that differs by so few grey levels in the
mean. Images whose standard deviation of brightness is below the last are too plain to be compared."""
_BANDS = (11, 11, 11, 11, 10, 10)  # bits of each
_WINDOW, _MOST_PAIRS = 200, 1_000_000
_SMALL = 32  # pixels along each side of what hash and thumbnail are made of
_THUMBNAIL = 16
_BRIGHT = 32  # of 255; 12 bits in files of 16 come to 15 at most


@dataclass(frozen=True)
class Measured:
    """Facts about N images.

    Attributes:
        width, height: int64 [N], upright; format: N of JPEG, PNG, WEBP.
        grey: bool [N], the three channels are equal; dark: bool [N], no value is above 31 of 255.
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

    def summary(self, image_size: int, files: Sequence[str]) -> ImageFacts | None:
        """None without images; ``files`` are their names."""
        if not self.format:
            return None
        longer, shorter = np.maximum(self.width, self.height), np.minimum(self.width, self.height)
        return ImageFacts(
            total=len(self.format),
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


def measure(
    catalogue: Catalogue,
    files: Sequence[str],
    squares: Iterable[npt.NDArray[np.uint8]],
    progress: Progress,
    interrupt: Interrupt,
) -> Measured:
    """Reads the header of every file and measures its decoded pixels.

    Args:
        files: N files of the catalogue, which can be decoded.
        squares: N decoded images, uint8 [S, S, 3]; S may differ.
    """
    n = len(files)
    sizes = np.zeros((2, n), dtype=np.int64)
    formats: list[str] = []
    grey, dark = np.zeros((2, n), dtype=np.bool_)
    hashes = np.zeros(n, dtype=np.uint64)
    thumbnails = np.zeros((n, _THUMBNAIL, _THUMBNAIL), dtype=np.uint8)
    with progress.task("measure images", total=n) as task:
        for number, (file, square) in enumerate(zip(files, squares, strict=True)):
            with catalogue.source.open(file) as stream:
                header = open_image(catalogue.root / file, stream)
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
    return Measured(sizes[0], sizes[1], tuple(formats), grey, dark, hashes, thumbnails)


def _extent(values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> Extent:
    """Rounded for display."""
    least, median, greatest = (round(float(function(values)), 3) for function in (np.min, np.median, np.max))
    return Extent(least=least, median=median, greatest=greatest)


def find_duplicates(labels: Catalogue, digests: Sequence[str], measured: Measured, splits: Splits | None) -> Duplicates:
    """Copies and near-copies among N images.

    Args:
        labels: of the N images.
        digests: N strings, equal for equal pixels.
        splits: what a run would load; None: it would fail.
    """
    files = labels.files
    kinds: dict[str, list[list[str]]] = {"within": [], "contradictory": [], "train_val": [], "test": []}
    for numbers in copies_of(digests):
        names = [readable(files[number]) for number in numbers]
        if contradict(labels, numbers):
            kinds["contradictory"].append(names)
        found = {0} if labels.split is None else {int(labels.split[number]) for number in numbers}
        if len(found) > 1:
            kinds["test" if SPLITS.index("test") in found else "train_val"].append(names)
        elif kinds["contradictory"][-1:] != [names]:
            kinds["within"].append(names)
    copies = {
        name: Copies(images=len(found), files=sum(map(len, found)), examples=found[:EXAMPLES])
        for name, found in kinds.items()
    }
    return Duplicates(**copies, near=_near_copies(_split_of_each(labels, splits), files, digests, measured))


def _split_of_each(labels: Catalogue, splits: Splits | None) -> Integers | None:
    """int64 [N], the split of each image, if need be as a run would draw it; -1: in none."""
    if labels.split is not None:
        return labels.split
    if splits is None:
        return None
    place = {file: number for number, part in enumerate(splits.parts.values()) for file in part.ids}
    return np.array([place.get(file, -1) for file in labels.files], dtype=np.int64)


def _near_copies(
    part: Integers | None, files: Sequence[str], digests: Sequence[str], measured: Measured
) -> NearCopies | None:
    if part is None:
        return None
    contrast = measured.thumbnails.std(axis=(1, 2)) if len(files) else np.empty(0)
    among = np.flatnonzero((part >= 0) & (contrast >= _PLAIN))
    pairs, complete = near_pairs(measured.hashes[among], part[among], _SAME_BITS)
    pairs = among[pairs]
    first, second = (measured.thumbnails[pairs[:, side]].astype(np.int16) for side in (0, 1))
    alike = np.abs(first - second).mean(axis=(1, 2)) <= _SAME_GREY
    equal = np.array([digests[a] == digests[b] for a, b in pairs], dtype=np.bool_)
    pairs = pairs[alike & ~equal]
    names = sorted((min(files[a], files[b]), max(files[a], files[b])) for a, b in pairs)
    with_test = int((part[pairs] == SPLITS.index("test")).any(axis=1).sum())
    examples = [(readable(first), readable(second)) for first, second in names[:EXAMPLES]]
    return NearCopies(pairs=len(names), with_test=with_test, examples=examples, complete=complete)


def near_pairs(hashes: Hashes, part: Integers, bits: int = 3) -> tuple[Integers, bool]:
    """All pairs of hashes of different parts that differ in at most ``bits`` bits.

    So many changed bits lie in as many of six bands at most, so two such hashes agree in all bits of some 6 - ``bits``
    bands: for every choice of these, the hashes are sorted by them, and only those that agree are compared (Manku, Jain
    and Das Sarma 2007, "Detecting near-duplicates for web crawling"). The time grows with N, if the hashes are spread.

    Args:
        hashes, part: [N].
        bits: 0 to 3.

    Returns:
        int64 [P, 2], each pair with its smaller number first, sorted; and whether they are all: among hashes that agree
        in a choice of bands each is compared with the next 200 alone, and after a million pairs the search ends.
    """
    n = len(hashes)
    found = np.empty(0, dtype=np.int64)  # smaller number times N plus the larger one
    complete = True
    for mask in _masks(len(_BANDS) - bits):
        key = hashes & mask
        order = np.lexsort((hashes, key)).astype(np.int64)
        key = key[order]
        here = np.arange(n, dtype=np.int64)
        new = [found]
        for step in range(1, _WINDOW + 2):
            here = here[here + step < n]
            here = here[key[here] == key[here + step]]
            if len(here) == 0:
                break
            if step > _WINDOW:
                complete = False
                break
            first, second = order[here], order[here + step]
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= bits
            near &= part[first] != part[second]
            first, second = first[near], second[near]
            new.append(np.minimum(first, second) * n + np.maximum(first, second))
        found = np.unique(np.concatenate(new))
        if len(found) > _MOST_PAIRS:
            complete = False
            break
    return np.stack(np.divmod(found, max(n, 1)), axis=1), complete


def _masks(kept: int) -> list[np.uint64]:
    """For every choice of so many bands, the bits of these bands."""
    ends = np.cumsum(_BANDS)
    bands = [((1 << width) - 1) << (int(end) - width) for width, end in zip(_BANDS, ends, strict=True)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, kept)]
