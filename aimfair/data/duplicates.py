"""The same picture twice, or the same patient: across splits it makes a test worthless, with two labels a picture
teaches a contradiction."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.data.biased_subset import Indices
from aimfair.data.catalogue import SPLITS, Catalogue

_TEST = SPLITS.index("test")


def distinct(catalogue: Catalogue, digests: Sequence[str], log: Log) -> Indices:
    """int64, ascending: one image of each picture, the first; none of a picture whose labels contradict each other."""
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
    """Refuses a test set that has a picture or an original of another split; warns of those in training and validation,
    and of pictures with different labels.

    Args:
        catalogue: of a data set that has splits.

    Raises:
        AimfairError: a picture or an original of the test set is in training or validation.
    """
    listing = catalogue.root / catalogue.listing
    _check(catalogue, copies(digests), "pictures", "take all but one of the copies out", log)
    if catalogue.originals is not None:
        _check(catalogue, copies(catalogue.originals), "originals of data.group_column", "put each in one split", log)
    contradictory = [numbers for numbers in copies(digests) if contradict(catalogue, numbers)]
    if contradictory:
        log.warn(
            f"{listing}: {len(contradictory):,} pictures are there more than once, with different labels, for example"
            f" {_names(catalogue, contradictory)}"
        )


def _check(catalogue: Catalogue, together: Sequence[Sequence[int]], what: str, advice: str, log: Log) -> None:
    """Of images that should be in one split each."""
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
            f"{listing}: {len(leaks):,} {what} of the test set are in another split, too, for example"
            f" {_names(catalogue, leaks)}; {advice}"
        )
    if shared:
        log.warn(
            f"{listing}: {len(shared):,} {what} are in training and in validation, for example"
            f" {_names(catalogue, shared)}"
        )


def copies(digests: Sequence[str]) -> list[list[int]]:
    """The images, ascending, of each text that two or more of them have."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, digest in enumerate(digests):
        found[digest].append(number)
    return [numbers for numbers in found.values() if len(numbers) > 1]


def contradict(catalogue: Catalogue, numbers: Sequence[int]) -> bool:
    """Whether the images at these numbers have different labels."""
    return len({(catalogue.target[number], catalogue.protected[number]) for number in numbers}) > 1


def _names(catalogue: Catalogue, found: Sequence[Sequence[int]]) -> str:
    return " and ".join(repr(catalogue.files[number]) for number in found[0])
