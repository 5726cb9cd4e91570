"""The same picture twice: across splits it makes a test worthless, with two labels it teaches a contradiction."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aimfair.data.bias import Indices
from aimfair.data.catalogue import SPLITS, Catalogue
from aimfair.data.images import ImageSet
from aimfair.errors import AimfairError
from aimfair.run.log import Log

_TEST = SPLITS.index("test")


def distinct(images: ImageSet, digests: Sequence[str], log: Log) -> Indices:
    """int64, ascending: one image of each picture, the first; none of a picture whose labels contradict each other."""
    repeated: list[int] = []
    contradictory: list[int] = []
    for numbers in copies(digests):
        if contradict(images, numbers):
            contradictory.extend(numbers)
        else:
            repeated.extend(numbers[1:])
    for dropped, what in ((repeated, "copies of others"), (contradictory, "copies with different labels")):
        if dropped:
            names = [images.ids[number] for number in dropped]
            log.warn(
                f"{len(names):,} of {len(images):,} images left out, {what}: for example {names[0]!r}", rejected=names
            )
    return np.setdiff1d(np.arange(len(images), dtype=np.int64), [*repeated, *contradictory]).astype(np.int64)


def check_leakage(images: ImageSet, digests: Sequence[str], split: Indices, listing: Path, log: Log) -> None:
    """Refuses a test set that has a picture of another split; warns of pictures in training and validation, and of
    pictures with different labels.

    Args:
        split: int64 [N], numbers in :data:`aimfair.data.catalogue.SPLITS`.
        listing: what to edit to leave an image out.

    Raises:
        AimfairError: a picture of the test set is in training or validation.
    """
    leaks: list[list[int]] = []
    shared: list[list[int]] = []
    contradictory: list[list[int]] = []
    for numbers in copies(digests):
        one_of_each = [numbers[int(place)] for place in np.unique(split[numbers], return_index=True)[1]]
        if len(one_of_each) > 1:
            (leaks if split[one_of_each[-1]] == _TEST else shared).append(one_of_each)
        if contradict(images, numbers):
            contradictory.append(numbers)
    if leaks:
        raise AimfairError(
            f"{listing}: {len(leaks):,} pictures of the test set are in another split, too, for example"
            f" {_names(images, leaks)}; take all but one of the copies out"
        )
    if shared:
        log.warn(
            f"{listing}: {len(shared):,} pictures are in training and in validation, for example"
            f" {_names(images, shared)}"
        )
    if contradictory:
        log.warn(
            f"{listing}: {len(contradictory):,} pictures are there more than once, with different labels, for example"
            f" {_names(images, contradictory)}"
        )


def copies(digests: Sequence[str]) -> list[list[int]]:
    """The images, ascending, of each digest that has two or more of them."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, digest in enumerate(digests):
        found[digest].append(number)
    return [numbers for numbers in found.values() if len(numbers) > 1]


def contradict(images: ImageSet | Catalogue, numbers: Sequence[int]) -> bool:
    """Whether the images at these numbers have different labels."""
    return len({(images.target[number], images.protected[number]) for number in numbers}) > 1


def _names(images: ImageSet, found: Sequence[Sequence[int]]) -> str:
    return " and ".join(repr(images.ids[number]) for number in found[0])
