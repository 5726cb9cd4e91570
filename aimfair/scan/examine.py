"""Collects the facts: what a data set lists, what can be decoded, what is duplicated, and what a run would use."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted
from aimfair.base.log import Log
from aimfair.base.progress import Progress
from aimfair.base.storage import local
from aimfair.config import Config
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected
from aimfair.data.images import Pixels, Splits
from aimfair.data.leakage import Leak, find_leaks, refuse_leaks
from aimfair.data.load import decode, decoded_together, list_images, load_splits, with_biased_training
from aimfair.data.settings import DRAWN
from aimfair.generation import imported, source
from aimfair.scan.advice import problems
from aimfair.scan.images import find_duplicates, measure
from aimfair.scan.results import EXAMPLES, AttributeCounts, Groups, Imported, LeftOut, Scan, Spelled, Taken, readable
from aimfair.scan.settings import ScanSettings

Integers = npt.NDArray[np.int64]

_SMALL = 32  # pixels along each side of images that no run would use: enough to compare them


@dataclass(frozen=True)
class _Context:
    config: Config | ScanSettings
    progress: Progress
    interrupt: Interrupt

    @property
    def log(self) -> Log:
        """Of what is said while the scan works."""
        return Log(None, show=self.progress.say)


@dataclass(frozen=True)
class _Loaded:
    """What a run would load.

    Attributes:
        splits: None if it would fail.
        error: with which it would fail.
        warnings: which it would log.
    """

    splits: Splits | None
    error: AimfairError | None
    warnings: list[str]


def scan(
    config: Config | ScanSettings, *, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> tuple[Scan, AimfairError | None]:
    """Examines every image of the data set and of ``generate.folder``, without changing any file.

    Images that a run would use are decoded as in a run and cached for it; others are decoded at a small size.

    Returns:
        The facts, and the error with which a run would fail, None if it would not.

    Raises:
        AimfairError: the data set cannot be read at all, with the same message as in a run.
        Interrupted: as ``interrupt`` says; images decoded so far stay in the cache.
    """
    context = _Context(config, progress or Progress(quiet=True), interrupt)
    if config.data.kind in DRAWN:
        splits = load_splits(config.data)
        return _combine(context, _Loaded(splits, None, []), splits.target_names, splits.protected_names, None)
    catalogue = list_images(config.data, context.log, context.progress, interrupt)
    decoded = _decode_all(catalogue, context)
    loaded = _load(context)
    files = [catalogue.files[number] for number in decoded.kept]
    decodable = catalogue.subset(decoded.kept)
    measured = measure(catalogue, files, decoded.squares, context.progress, interrupt)
    groups = _groups(decodable)
    facts = {
        "root": readable(str(catalogue.root)),
        "rows": LeftOut.of(catalogue.rejected, catalogue.rows),
        "files": LeftOut.of(decoded.rejected, len(catalogue.files)),
        "groups": groups,
        "attributes": _attributes(decodable),
        "spellings": [
            Spelled(key=one.key, name=one.name, groups=list(map(list, one.groups)), what=str(one), advice=one.advice)
            for one in catalogue.spellings
        ],
        "association": association(next(iter(groups.values()))),
        "images": measured.summary(config.data.image_size, files),
        "duplicates": find_duplicates(decodable, decoded.digests, measured, loaded.splits),
    }
    return _combine(context, loaded, catalogue.target_names, catalogue.protected_names, facts)


def _combine(
    context: _Context,
    loaded: _Loaded,
    target_names: tuple[str, ...],
    protected_names: tuple[str, ...],
    facts: Mapping[str, Any] | None,
) -> tuple[Scan, AimfairError | None]:
    """The result, and the first error of a run: of the real images, the prompts, then the folder.

    Args:
        facts: about files; None: the images are generated, so there are none.
    """
    config, splits = context.config, loaded.splits
    shape = len(target_names), len(protected_names)
    error = loaded.error
    if error is None and config.prompts is not None:
        try:
            config.prompts.require_groups(target_names, protected_names)
        except AimfairError as mismatch:
            error = mismatch
    groups = None
    if splits is not None:
        groups = {name: part.group_counts(*shape).tolist() for name, part in splits.parts.items()}
    taken = Taken(
        refusal=None if error is None else str(error),
        warnings=loaded.warnings,
        groups=groups,
        association=None if groups is None else association(groups["train"]),
    )
    synthetic, refused = None, None
    if config.generate.folder is not None:
        folder = local(
            config.generate.folder, "generate.folder", progress=context.progress, interrupt=context.interrupt
        )
        synthetic, refused = _examine_folder(folder, context, shape, splits)
    if facts is None:
        facts = dict.fromkeys(("root", "rows", "files", "images", "duplicates"))
        facts |= {"groups": groups, "attributes": [], "spellings": [], "association": taken.association}
    found = Scan(
        kind=config.data.kind,
        target=config.data.target,
        protected=" x ".join([config.data.protected, *config.data.intersect_with]),
        target_names=list(target_names),
        protected_names=list(protected_names),
        small_group=config.evaluate.small_group,
        taken=taken,
        imported=synthetic,
        problems=[],
        **facts,
    )
    return found.model_copy(update={"problems": problems(found, config, splits)}), error or refused


def association(groups: Groups) -> float | None:
    """Cramer's V of a table of counts: sqrt(chi-squared / (n min(Y - 1, A - 1))) (Cramer 1946).

    Classes and values without images are ignored; None if fewer than two of either are left.
    """
    from scipy.stats import contingency  # type: ignore[import-untyped]

    counts = np.array(groups, dtype=np.int64)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape) < 2:
        return None
    return round(float(contingency.association(counts, method="cramer")), 4)


@dataclass(frozen=True)
class _Decoded:
    """As :class:`aimfair.data.cache.Decoded`, of all files of a catalogue.

    Attributes:
        squares: uint8 [S, S, 3] each, in the order of ``kept``; S is one of two sizes.
    """

    squares: Iterator[npt.NDArray[np.uint8]]
    kept: Integers
    digests: tuple[str, ...]
    rejected: tuple[Rejected, ...]


def _decode_all(catalogue: Catalogue, context: _Context) -> _Decoded:
    """First the images that a run would use, at its size; then the others, at a small size."""
    settings = context.config.data
    try:
        taken = set(with_biased_training(catalogue, settings).files)
    except AimfairError:  # load_splits reports it
        taken = set()
    is_taken = np.array([file in taken for file in catalogue.files], dtype=np.bool_)
    blocks: list[Pixels] = []
    found: list[tuple[int, str, int, int]] = []  # number of the file, digest, block, row in it
    rejected: list[Rejected] = []
    small = min(_SMALL, settings.image_size)
    for numbers, size in [
        *((numbers[is_taken[numbers]], settings.image_size) for numbers in decoded_together(catalogue)),
        (np.flatnonzero(~is_taken), small),
    ]:
        sized = settings.model_copy(update={"image_size": size})
        decoded = decode(catalogue.subset(numbers), sized, context.log, context.progress, context.interrupt)
        kept = zip(numbers[decoded.kept].tolist(), decoded.digests, strict=True)
        found += [(number, digest, len(blocks), row) for row, (number, digest) in enumerate(kept)]
        blocks.append(decoded.images)
        rejected += decoded.rejected
    found.sort()
    return _Decoded(
        (blocks[block][row] for _, _, block, row in found),
        np.array([number for number, *_ in found], dtype=np.int64),
        tuple(digest for _, digest, *_ in found),
        tuple(sorted(rejected)),
    )


def _load(context: _Context) -> _Loaded:
    log, warnings = _warnings_log()
    try:
        splits = load_splits(context.config.data, log=log, progress=context.progress, interrupt=context.interrupt)
    except Interrupted:
        raise
    except AimfairError as error:
        return _Loaded(None, error, warnings)
    return _Loaded(splits, None, warnings)


def _warnings_log() -> tuple[Log, list[str]]:
    """A log, and the list to which it adds the warnings that it is given."""
    warnings: list[str] = []
    return Log(None, show=lambda message: warnings.append(message.removeprefix("warning: "))), warnings


def _attributes(catalogue: Catalogue) -> list[AttributeCounts]:
    found = []
    for name, attribute in catalogue.labels.attributes.items():
        counts = {
            split: np.bincount(attribute.values[chosen], minlength=len(attribute.names)).tolist()
            for split, chosen in _members(catalogue).items()
        }
        found.append(AttributeCounts(name=name, names=list(attribute.names), counts=counts))
    return found


def _groups(catalogue: Catalogue) -> dict[str, Groups]:
    found: dict[str, Groups] = {}
    for split, chosen in _members(catalogue).items():
        counts = np.zeros((len(catalogue.target_names), len(catalogue.protected_names)), dtype=np.int64)
        np.add.at(counts, (catalogue.target[chosen], catalogue.protected[chosen]), 1)
        found[split] = counts.tolist()
    return found


def _members(catalogue: Catalogue) -> dict[str, npt.NDArray[np.bool_]]:
    """bool [N], the images of each split; of "all" if the data set has no splits."""
    if catalogue.split is None:
        return {"all": np.ones(len(catalogue.files), dtype=np.bool_)}
    return {name: catalogue.split == number for number, name in enumerate(SPLITS)}


# -- generate.folder ---------------------------------------------------------------------------------------------------


def _examine_folder(
    folder: Path, context: _Context, shape: tuple[int, int], splits: Splits | None
) -> tuple[Imported, AimfairError | None]:
    """What is in ``generate.folder``, and the error with which a run would refuse it.

    Args:
        shape: (Y, A) of the real images.
        splits: None: a run would fail before it reads the folder, so only its content is reported.
    """
    config, progress, interrupt = context.config, context.progress, context.interrupt
    try:
        found = source.read_source(folder, shape, config.data, log=context.log, progress=progress, interrupt=interrupt)
    except Interrupted:
        raise
    except AimfairError as error:
        nothing = dict.fromkeys(("files", "found", "usable"))
        return _imported(folder, error, [], [], {}, nothing), error
    log, warnings = _warnings_log()
    refused: AimfairError | None = None
    leaks: list[Leak] = []
    if splits is not None:
        leaks = find_leaks(found.digests, splits, config.data, progress=progress, interrupt=interrupt)
        try:
            imported.choose(found, config.generate, config.data, shape[1], log)
            refuse_leaks(leaks, folder, log)
        except Interrupted:
            raise
        except AimfairError as error:
            refused = error
    counts = {
        "files": LeftOut.of(found.unreadable, len(found.images)),
        "found": _count(found, shape, {}),
        "usable": _count(found, shape, found.rejected),
    }
    return _imported(folder, refused, warnings, leaks, Counter(found.rejected.values()), counts), refused


def _imported(
    folder: Path,
    error: AimfairError | None,
    warnings: list[str],
    leaks: list[Leak],
    reasons: Mapping[str, int],
    counts: Mapping[str, Any],
) -> Imported:
    by_split = Counter(leak.split for leak in leaks)
    worst_first = sorted(leaks, key=lambda leak: -SPLITS.index(leak.split))
    return Imported(
        folder=readable(str(folder)),
        refusal=None if error is None else str(error),
        warnings=warnings,
        copies=reasons.get(source.COPY, 0),
        two_groups=reasons.get(source.TWO_GROUPS, 0),
        leaks={split: by_split[split] for split in SPLITS},
        leak_examples=[(readable(leak.file), readable(leak.real)) for leak in worst_first[:EXAMPLES]],
        **counts,
    )


def _count(found: source.Source, shape: tuple[int, int], rejected: Mapping[str, str]) -> Groups:
    counts = np.zeros(shape, dtype=np.int64)
    for one in found.images:
        counts[one.y, one.a] += one.file not in rejected
    groups: Groups = counts.tolist()
    return groups
