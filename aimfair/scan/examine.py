"""Facts about a data set: what it lists, what can be decoded, what is there twice, and what a run would take of it."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aimfair.config import Config, DataSettings
from aimfair.data import digits
from aimfair.data.cache import decode_files
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected
from aimfair.data.images import Splits
from aimfair.data.load import load_splits, read_catalogue, with_biased_training
from aimfair.errors import AimfairError
from aimfair.run.interrupt import NEVER, Interrupt, Interrupted
from aimfair.run.log import Log
from aimfair.run.progress import Progress
from aimfair.scan.advice import problems
from aimfair.scan.alike import near_pairs
from aimfair.scan.pictures import Looks, look
from aimfair.scan.results import Copies, Duplicates, Groups, LeftOut, NearCopies, Reason, Scan, Taken

Integers = npt.NDArray[np.int64]

_EXAMPLES = 5
_SMALL = 32  # pixels along each side of images that no run would take: enough to compare them
_SAME_BITS, _SAME_GREY, _PLAIN = 3, 8, 4
"""Near-copies: dHashes that differ in so few bits at most, and brightness that differs by so few grey levels in the
mean. Pictures with less contrast (standard deviation of the brightness) than the last say nothing of being copies."""

_PARTICULARS = re.compile(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|\d[\d,.]*")


def scan(
    config: Config, *, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> tuple[Scan, AimfairError | None]:
    """Looks at every image of the data set; nothing of it is changed.

    What a run would take is decoded as the run does it, into the same cache, so that the run need not. Other images are
    decoded, too, and kept small.

    Returns:
        What was found, and the error with which a run would end, None if it would not.

    Raises:
        AimfairError: the data set cannot be read at all, with the same line as in a run.
        Interrupted: what is decoded stays.
    """
    settings = config.data
    progress = progress or Progress(quiet=True)
    if settings.kind == "digits":
        return _drawn(config)
    catalogue = read_catalogue(settings)
    decoded = _decode_all(catalogue, settings, progress, interrupt)
    splits, error, warnings = _splits(settings, progress, interrupt)

    files = [catalogue.files[number] for number in decoded.kept]
    labels = catalogue.subset(decoded.kept)
    looks = look(catalogue.root, files, decoded.squares, progress, interrupt)
    shape = len(catalogue.target_names), len(catalogue.protected_names)
    groups = _groups(labels, shape)
    scan = Scan(
        kind=settings.kind,
        root=_readable(str(catalogue.root)),
        target=settings.target,
        protected=settings.protected,
        target_names=list(catalogue.target_names),
        protected_names=list(catalogue.protected_names),
        small_group=config.evaluate.small_group,
        rows=_left_out(catalogue.rejected, catalogue.rows),
        files=_left_out(decoded.rejected, len(catalogue.files)),
        groups=groups,
        association=association(next(iter(groups.values()))),
        pictures=looks.summary(settings.image_size),
        duplicates=_duplicates(labels, files, decoded.digests, looks, splits),
        taken=_taken(splits, error, warnings),
        problems=[],
    )
    return scan.model_copy(update={"problems": problems(scan, config, splits)}), error


def association(groups: Groups) -> float | None:
    """Cramer's V of a table of counts: the root of chi-squared over n times the least of Y - 1 and A - 1 (Cramer 1946).

    Classes and values without images do not count; None where fewer than two of either are left.
    """
    counts = np.array(groups, dtype=np.float64)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape) < 2:
        return None
    n = counts.sum()
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / n
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    return round(float(np.sqrt(chi_squared / (n * (min(counts.shape) - 1)))), 4)


@dataclass(frozen=True)
class _All:
    """As :class:`aimfair.data.cache.Decoded`, of all files.

    Attributes:
        squares: uint8 [S, S, 3] each, in the order of ``kept``; S is one of two sizes.
    """

    squares: Iterator[npt.NDArray[np.uint8]]
    kept: Integers
    digests: tuple[str, ...]
    rejected: tuple[Rejected, ...]


def _decode_all(catalogue: Catalogue, settings: DataSettings, progress: Progress, interrupt: Interrupt) -> _All:
    """First what a run would take, at its size; then the others, small."""
    try:
        taken = set(with_biased_training(catalogue, settings).files)
    except AimfairError:  # a run would end here; load_splits says how
        taken = set()
    is_taken = np.array([file in taken for file in catalogue.files], dtype=np.bool_)
    blocks: list[npt.NDArray[np.uint8]] = []
    found: list[tuple[int, str, int, int]] = []  # number of the file, digest, block, row in it
    rejected: list[Rejected] = []
    for chosen, size in ((is_taken, settings.image_size), (~is_taken, min(_SMALL, settings.image_size))):
        numbers = np.flatnonzero(chosen)
        files = [catalogue.files[number] for number in numbers]
        decoded = decode_files(
            catalogue.root,
            files,
            size,
            settings.max_pixels,
            fit=settings.fit,
            progress=progress,
            interrupt=interrupt,
        )
        kept = zip(numbers[decoded.kept].tolist(), decoded.digests, strict=True)
        found += [(number, digest, len(blocks), row) for row, (number, digest) in enumerate(kept)]
        blocks.append(decoded.images)
        rejected += decoded.rejected
    found.sort()
    return _All(
        (blocks[block][row] for _, _, block, row in found),
        np.array([number for number, *_ in found], dtype=np.int64),
        tuple(digest for _, digest, *_ in found),
        tuple(sorted(rejected)),
    )


def _splits(
    settings: DataSettings, progress: Progress, interrupt: Interrupt
) -> tuple[Splits | None, AimfairError | None, list[str]]:
    """What a run would take, or the error with which it would end; and what it would warn of."""
    warnings: list[str] = []
    log = Log(None, show=lambda message: warnings.append(message.removeprefix("warning: ")))
    try:
        return (
            load_splits(settings, log=log, progress=progress, interrupt=interrupt),
            None,
            warnings,
        )
    except Interrupted:
        raise
    except AimfairError as error:
        return None, error, warnings


def _taken(splits: Splits | None, error: AimfairError | None, warnings: list[str]) -> Taken:
    if splits is None:
        return Taken(refusal=str(error), warnings=warnings, groups=None, association=None)
    shape = len(splits.target_names), len(splits.protected_names)
    parts = zip(SPLITS, (splits.train, splits.validation, splits.test), strict=True)
    groups: dict[str, Groups] = {name: part.group_counts(*shape).tolist() for name, part in parts}
    return Taken(refusal=None, warnings=warnings, groups=groups, association=association(groups["train"]))


def _drawn(config: Config) -> tuple[Scan, AimfairError | None]:
    """Of digits, which are drawn and not read."""
    splits = digits.load(config.data)
    taken = _taken(splits, None, [])
    assert taken.groups is not None
    scan = Scan(
        kind=config.data.kind,
        root=None,
        target=config.data.target,
        protected=config.data.protected,
        target_names=list(splits.target_names),
        protected_names=list(splits.protected_names),
        small_group=config.evaluate.small_group,
        rows=None,
        files=None,
        groups=taken.groups,
        association=taken.association,
        pictures=None,
        duplicates=None,
        taken=taken,
        problems=[],
    )
    return scan.model_copy(update={"problems": problems(scan, config, splits)}), None


def _groups(labels: Catalogue, shape: tuple[int, int]) -> dict[str, Groups]:
    def count(chosen: npt.NDArray[np.bool_]) -> Groups:
        counts = np.zeros(shape, dtype=np.int64)
        np.add.at(counts, (labels.target[chosen], labels.protected[chosen]), 1)
        found: Groups = counts.tolist()
        return found

    if labels.split is None:
        return {"all": count(np.ones(len(labels.files), dtype=np.bool_))}
    return {name: count(labels.split == number) for number, name in enumerate(SPLITS)}


def _left_out(rejected: Sequence[Rejected], total: int) -> LeftOut:
    """By reason; what differs from file to file, names and numbers, makes no reason of its own."""
    reasons: defaultdict[str, list[Rejected]] = defaultdict(list)
    for one in rejected:
        reasons[_PARTICULARS.sub("...", one.reason)].append(one)
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    return LeftOut(
        total=total,
        left_out=len(rejected),
        reasons=[
            Reason(
                reason=reason,
                count=len(found),
                examples=[(_readable(one.name), _readable(one.reason)) for one in found[:_EXAMPLES]],
            )
            for reason, found in ordered
        ],
    )


def _duplicates(
    labels: Catalogue, files: Sequence[str], digests: Sequence[str], looks: Looks, splits: Splits | None
) -> Duplicates:
    pictures: defaultdict[str, list[int]] = defaultdict(list)
    for number, digest in enumerate(digests):
        pictures[digest].append(number)
    several = [numbers for numbers in pictures.values() if len(numbers) > 1]
    kinds: dict[str, list[list[str]]] = {"within": [], "contradictory": [], "train_val": [], "test": []}
    for numbers in several:
        names = [_readable(files[number]) for number in numbers]
        if len({(labels.target[number], labels.protected[number]) for number in numbers}) > 1:
            kinds["contradictory"].append(names)
        found = {0} if labels.split is None else {int(labels.split[number]) for number in numbers}
        if len(found) > 1:
            kinds["test" if SPLITS.index("test") in found else "train_val"].append(names)
        elif kinds["contradictory"][-1:] != [names]:
            kinds["within"].append(names)
    copies = {
        name: Copies(pictures=len(found), files=sum(map(len, found)), examples=found[:_EXAMPLES])
        for name, found in kinds.items()
    }
    return Duplicates(**copies, near=_near_copies(_part_of_each(labels, files, splits), files, digests, looks))


def _part_of_each(labels: Catalogue, files: Sequence[str], splits: Splits | None) -> Integers | None:
    """int64 [N], the split of each image, that of a run where the data set has none; -1: in no split."""
    if labels.split is not None:
        return labels.split
    if splits is None:
        return None
    parts = (splits.train, splits.validation, splits.test)
    place = {file: number for number, part in enumerate(parts) for file in part.ids}
    return np.array([place.get(file, -1) for file in files], dtype=np.int64)


def _near_copies(
    part: Integers | None, files: Sequence[str], digests: Sequence[str], looks: Looks
) -> NearCopies | None:
    if part is None:
        return None
    contrast = looks.thumbnails.std(axis=(1, 2)) if len(files) else np.empty(0)
    among = np.flatnonzero((part >= 0) & (contrast >= _PLAIN))
    pairs, complete = near_pairs(looks.hashes[among], part[among], _SAME_BITS)
    pairs = among[pairs]
    first, second = (looks.thumbnails[pairs[:, side]].astype(np.int16) for side in (0, 1))
    alike = np.abs(first - second).mean(axis=(1, 2)) <= _SAME_GREY
    equal = np.array([digests[a] == digests[b] for a, b in pairs], dtype=np.bool_)
    pairs = pairs[alike & ~equal]
    names = sorted((min(files[a], files[b]), max(files[a], files[b])) for a, b in pairs)
    with_test = int((part[pairs] == SPLITS.index("test")).any(axis=1).sum())
    examples = [(_readable(first), _readable(second)) for first, second in names[:_EXAMPLES]]
    return NearCopies(pairs=len(names), with_test=with_test, examples=examples, complete=complete)


def _readable(name: str) -> str:
    """A name that is no UTF-8, which JSON could not hold, with its odd bytes as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
