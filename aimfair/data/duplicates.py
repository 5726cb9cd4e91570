"""Copies of an image and images of one cluster (a patient): shared by two splits they invalidate the test, with two
labels they teach a contradiction."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.data.biased_subset import Indices
from aimfair.data.catalogue import SPLITS, Catalogue

_TEST = SPLITS.index("test")


def distinct(catalogue: Catalogue, digests: Sequence[str], log: Log) -> Indices:
    """int64, ascending: images without copies: the first of each set of copies, or none if their labels differ."""
    repeated: list[int] = []
    contradictory: list[int] = []
    for numbers in copies(digests):
        if contradict(catalogue, numbers):
            contradictory.extend(numbers)
        else:
            repeated.extend(numbers[1:])
    for dropped, what in ((repeated, "copies of others"), (contradictory, "copies with different labels")):
        if dropped:
            names = [catalogue.files[number] for number in dropped]
            log.warn(
                f"{len(names):,} of {len(digests):,} images left out, {what}: for example {names[0]!r}", rejected=names
            )
    return np.setdiff1d(np.arange(len(digests), dtype=np.int64), [*repeated, *contradictory]).astype(np.int64)


def check_leakage(catalogue: Catalogue, digests: Sequence[str], log: Log) -> None:
    """Refuses a test set that shares an image or a cluster with another split; warns of those shared by training and
    validation, and of copies with different labels.

    Args:
        catalogue: of a data set that has splits.

    Raises:
        AimfairError: an image or a cluster of the test set is in training or validation.
    """
    listing = catalogue.root / catalogue.listing
    _check(catalogue, copies(digests), "images", "remove all but one copy", log)
    if catalogue.clusters is not None:
        _check(catalogue, copies(catalogue.clusters), "values of data.group_column", "put each in one split", log)
    contradictory = [numbers for numbers in copies(digests) if contradict(catalogue, numbers)]
    if contradictory:
        log.warn(
            f"{listing}: {len(contradictory):,} images are present more than once, with different labels, for example"
            f" {_names(catalogue, contradictory)}"
        )


def _check(catalogue: Catalogue, together: Sequence[Sequence[int]], what: str, advice: str, log: Log) -> None:
    """Checks images that belong together and so in one split."""
    assert catalogue.split is not None
    listing = catalogue.root / catalogue.listing
    leaks: list[list[int]] = []
    shared: list[list[int]] = []
    for numbers in together:
        one_of_each = [numbers[int(place)] for place in np.unique(catalogue.split[numbers], return_index=True)[1]]
        if len(one_of_each) > 1:
            (leaks if catalogue.split[one_of_each[-1]] == _TEST else shared).append(one_of_each)
    if leaks:
        raise AimfairError(
            f"{listing}: {len(leaks):,} {what} of the test set are also in another split, for example"
            f" {_names(catalogue, leaks)}; {advice}"
        )
    if shared:
        log.warn(
            f"{listing}: {len(shared):,} {what} are in training and in validation, for example"
            f" {_names(catalogue, shared)}"
        )


def copies(digests: Sequence[str]) -> list[list[int]]:
    """The numbers, ascending, of images with equal strings, for each string that occurs more than once."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, digest in enumerate(digests):
        found[digest].append(number)
    return [numbers for numbers in found.values() if len(numbers) > 1]


def contradict(catalogue: Catalogue, numbers: Sequence[int]) -> bool:
    """Whether the images at these numbers have different labels."""
    return len({(catalogue.target[number], catalogue.protected[number]) for number in numbers}) > 1


def _names(catalogue: Catalogue, found: Sequence[Sequence[int]]) -> str:
    return " and ".join(repr(catalogue.files[number]) for number in found[0])
