"""The images of ``generate.folder``, as a run would find them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.log import Log
from aimfair.base.progress import Progress
from aimfair.config import Config
from aimfair.data.catalogue import SPLITS
from aimfair.data.images import Splits
from aimfair.data.leakage import Leak, find_leaks, refuse_leaks
from aimfair.generation import imported, source
from aimfair.scan.results import EXAMPLES, Groups, Imported, LeftOut, readable
from aimfair.scan.settings import ScanSettings


def look_at_folder(
    folder: Path,
    config: Config | ScanSettings,
    shape: tuple[int, int],
    splits: Splits | None,
    progress: Progress,
    interrupt: Interrupt,
) -> tuple[Imported, AimfairError | None]:
    """What is in a folder, and the error with which a run would end that has these splits.

    Args:
        shape: (Y, A) of the real images.
        splits: None: a run ends before it looks at the folder, so only what is there is told.

    Raises:
        Interrupted: as ``interrupt`` says.
    """
    try:
        found = source.read_source(folder, shape, config.data, progress=progress, interrupt=interrupt)
    except Interrupted:
        raise
    except AimfairError as unread:
        return _unread(folder, unread), unread
    warnings: list[str] = []
    log = Log(None, show=lambda message: warnings.append(message.removeprefix("warning: ")))
    error: AimfairError | None = None
    leaks: list[Leak] = []
    if splits is not None:
        leaks = find_leaks(found.digests, splits, config.data, progress=progress, interrupt=interrupt)
        try:
            imported.choose(found, config.generate, config.data, shape[1], log)
            refuse_leaks(leaks, folder, log)
        except Interrupted:
            raise
        except AimfairError as refusal:
            error = refusal
    reasons = Counter(found.rejected.values())
    parts = Counter(leak.split for leak in leaks)
    worst_first = sorted(leaks, key=lambda leak: -SPLITS.index(leak.split))
    return Imported(
        folder=readable(str(folder)),
        refusal=None if error is None else str(error),
        warnings=warnings,
        files=LeftOut.of(found.unreadable, len(found.images)),
        found=_count(found, shape, {}),
        usable=_count(found, shape, found.rejected),
        copies=reasons[source.COPY],
        two_groups=reasons[source.TWO_GROUPS],
        leaks={split: parts[split] for split in SPLITS},
        leak_examples=[(readable(leak.file), readable(leak.real)) for leak in worst_first[:EXAMPLES]],
    ), error


def _unread(folder: Path, error: AimfairError) -> Imported:
    return Imported(
        folder=readable(str(folder)),
        refusal=str(error),
        warnings=[],
        files=None,
        found=None,
        usable=None,
        copies=0,
        two_groups=0,
        leaks=dict.fromkeys(SPLITS, 0),
        leak_examples=[],
    )


def _count(found: source.Source, shape: tuple[int, int], rejected: Mapping[str, str]) -> Groups:
    counts = np.zeros(shape, dtype=np.int64)
    for one in found.images:
        counts[one.y, one.a] += one.file not in rejected
    groups: Groups = counts.tolist()
    return groups
