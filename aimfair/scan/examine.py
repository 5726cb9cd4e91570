"""Facts about a data set: what it lists, what can be decoded, what is there twice, and what a run would take of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted
from aimfair.base.log import Log
from aimfair.base.progress import Progress
from aimfair.config import Config
from aimfair.data import digits
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected
from aimfair.data.duplicates import contradict
from aimfair.data.duplicates import copies as copies_of
from aimfair.data.images import Splits
from aimfair.data.load import decode, decoded_together, list_images, load_splits, with_biased_training
from aimfair.data.settings import DataSettings
from aimfair.prompts.settings import PromptSettings
from aimfair.scan.advice import problems
from aimfair.scan.alike import near_pairs
from aimfair.scan.folder import look_at_folder
from aimfair.scan.pictures import Looks, look
from aimfair.scan.results import (
    EXAMPLES,
    AttributeCounts,
    Copies,
    Duplicates,
    Groups,
    Imported,
    LeftOut,
    NearCopies,
    Scan,
    Taken,
    readable,
)
from aimfair.scan.settings import ScanSettings

Integers = npt.NDArray[np.int64]

_SMALL = 32  # pixels along each side of images that no run would take: enough to compare them
_SAME_BITS, _SAME_GREY, _PLAIN = 3, 8, 4
"""Near-copies: dHashes that differ in so few bits at most, and brightness that differs by so few grey levels in the
mean. Pictures with less contrast (standard deviation of the brightness) than the last say nothing of being copies."""


def scan(
    config: Config | ScanSettings, *, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> tuple[Scan, AimfairError | None]:
    """Looks at every image of the data set and of ``generate.folder``; nothing of them is changed.

    What a run would take is decoded as the run does it, into the same cache, so that the run need not. Other images are
    decoded, too, and kept small.

    Returns:
        What was found, and the error with which a run would end, None if it would not.

    Raises:
        AimfairError: the data set cannot be read at all, with the same line as in a run.
        Interrupted: as ``interrupt`` says; what stays of the decoded images, ``decode_files`` says.
    """
    settings = config.data
    progress = progress or Progress(quiet=True)
    if settings.kind == "digits":
        return _drawn(config, progress, interrupt)
    catalogue = list_images(settings)
    decoded = _decode_all(catalogue, settings, progress, interrupt)
    splits, error, warnings = _splits(settings, progress, interrupt)

    files = [catalogue.files[number] for number in decoded.kept]
    labels = catalogue.subset(decoded.kept)
    looks = look(catalogue.root, files, decoded.squares, progress, interrupt)
    shape = len(catalogue.target_names), len(catalogue.protected_names)
    groups = _groups(labels, shape)
    taken, synthetic, error = _taken(
        config, splits, error, warnings, catalogue.target_names, catalogue.protected_names, progress, interrupt
    )
    scan = Scan(
        kind=settings.kind,
        root=readable(str(catalogue.root)),
        target=settings.target,
        protected=" x ".join([settings.protected, *settings.intersect_with]),
        target_names=list(catalogue.target_names),
        protected_names=list(catalogue.protected_names),
        small_group=config.evaluate.small_group,
        rows=LeftOut.of(catalogue.rejected, catalogue.rows),
        files=LeftOut.of(decoded.rejected, len(catalogue.files)),
        groups=groups,
        attributes=_attributes(labels),
        association=association(next(iter(groups.values()))),
        pictures=looks.summary(settings.image_size, files),
        duplicates=_duplicates(labels, files, decoded.digests, looks, splits),
        taken=taken,
        imported=synthetic,
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
    small = min(_SMALL, settings.image_size)
    for numbers, size in [
        *((numbers[is_taken[numbers]], settings.image_size) for numbers in decoded_together(catalogue)),
        (np.flatnonzero(~is_taken), small),
    ]:
        sized = settings.model_copy(update={"image_size": size})
        decoded = decode(catalogue.subset(numbers), sized, progress, interrupt)
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


def _taken(
    config: Config | ScanSettings,
    splits: Splits | None,
    error: AimfairError | None,
    warnings: list[str],
    targets: Sequence[str],
    protected: Sequence[str],
    progress: Progress,
    interrupt: Interrupt,
) -> tuple[Taken, Imported | None, AimfairError | None]:
    """What a run would take and what it would say, in the order in which it looks: real images, words, folder."""
    error = error or _other_groups(config.prompts, targets, protected)
    groups: dict[str, Groups] | None = None
    if splits is not None:
        parts = zip(SPLITS, (splits.train, splits.validation, splits.test), strict=True)
        groups = {name: part.group_counts(len(targets), len(protected)).tolist() for name, part in parts}
    taken = Taken(
        refusal=None if error is None else str(error),
        warnings=warnings,
        groups=groups,
        association=None if groups is None else association(groups["train"]),
    )
    if config.generate.folder is None:
        return taken, None, error
    shape = len(targets), len(protected)
    found, refused = look_at_folder(config.generate.folder, config, shape, splits, progress, interrupt)
    return taken, found, error or refused


def _other_groups(
    prompts: PromptSettings | None, targets: Sequence[str], protected: Sequence[str]
) -> ConfigError | None:
    if prompts is not None:
        try:
            prompts.require_groups(targets, protected)
        except ConfigError as error:
            return error
    return None


def _drawn(config: Config | ScanSettings, progress: Progress, interrupt: Interrupt) -> tuple[Scan, AimfairError | None]:
    """Of digits, which are drawn and not read."""
    splits = digits.load(config.data)
    taken, synthetic, error = _taken(
        config, splits, None, [], splits.target_names, splits.protected_names, progress, interrupt
    )
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
        attributes=[],
        association=taken.association,
        pictures=None,
        duplicates=None,
        taken=taken,
        imported=synthetic,
        problems=[],
    )
    return scan.model_copy(update={"problems": problems(scan, config, splits)}), error


def _attributes(labels: Catalogue) -> list[AttributeCounts]:
    found = []
    for name, attribute in labels.labels.attributes.items():
        counts = {
            part: np.bincount(attribute.values[chosen], minlength=len(attribute.names)).tolist()
            for part, chosen in _parts(labels).items()
        }
        found.append(AttributeCounts(name=name, names=list(attribute.names), counts=counts))
    return found


def _parts(labels: Catalogue) -> dict[str, npt.NDArray[np.bool_]]:
    """Which images are in each split; in "all", where the data set has no splits of its own."""
    if labels.split is None:
        return {"all": np.ones(len(labels.files), dtype=np.bool_)}
    return {name: labels.split == number for number, name in enumerate(SPLITS)}


def _groups(labels: Catalogue, shape: tuple[int, int]) -> dict[str, Groups]:
    def count(chosen: npt.NDArray[np.bool_]) -> Groups:
        counts = np.zeros(shape, dtype=np.int64)
        np.add.at(counts, (labels.target[chosen], labels.protected[chosen]), 1)
        found: Groups = counts.tolist()
        return found

    return {name: count(chosen) for name, chosen in _parts(labels).items()}


def _duplicates(
    labels: Catalogue, files: Sequence[str], digests: Sequence[str], looks: Looks, splits: Splits | None
) -> Duplicates:
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
        name: Copies(pictures=len(found), files=sum(map(len, found)), examples=found[:EXAMPLES])
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
    examples = [(readable(first), readable(second)) for first, second in names[:EXAMPLES]]
    return NearCopies(pairs=len(names), with_test=with_test, examples=examples, complete=complete)
