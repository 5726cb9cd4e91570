"""The synthetic images of a run, as its manifest lists them."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.progress import Progress
from aimfair.data.cache import decode_files
from aimfair.data.catalogue import relative_file
from aimfair.data.decode import Fit
from aimfair.data.images import ImageSet

MANIFEST = "manifest.jsonl"

MAX_PIXELS = 2**26
"""Of a file: images that were made elsewhere are kept in the size they came in."""


def load(
    folder: Path,
    which: Literal["balanced", "biased"],
    size: int,
    fit: Fit,
    *,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> ImageSet:
    """The images of one of the two sets, in the order of the manifest.

    They are decoded into ``folder/decoded``, once: a run directory keeps all that is its own.

    Args:
        folder: ``synthetic`` in the run directory.
        size: pixels along each side.
        fit: how images become squares, as the real ones do: any difference would tell the two apart.

    Raises:
        AimfairError: the manifest or an image is missing or damaged, or the set is empty.
    """
    manifest = folder / MANIFEST
    rows = [row for row in _rows(manifest) if which in row["sets"]]
    if not rows:
        raise AimfairError(f"{manifest}: the {which} set has no images; run: aimfair generate")
    files = [row["file"] for row in rows]
    decoded = decode_files(
        folder, files, size, MAX_PIXELS, fit=fit, folder=folder / "decoded", progress=progress, interrupt=interrupt
    )
    if decoded.rejected:
        name, reason = decoded.rejected[0]
        there = "remove it and " if (folder / name).exists() else ""
        raise AimfairError(f"{folder / name}: {reason}; {there}run: aimfair generate")
    return ImageSet(
        decoded.images,
        np.array([row["y"] for row in rows], dtype=np.int64),
        np.array([row["a"] for row in rows], dtype=np.int64),
        tuple(files),
    )


def _rows(manifest: Path) -> list[dict[str, Any]]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AimfairError(f"{manifest}: cannot be read: {error}; run: aimfair generate") from error
    return [_row(line, f"{manifest}:{number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        labels = all(type(row[key]) is int and row[key] >= 0 for key in ("y", "a"))
        if not labels or not isinstance(row["sets"], list):
            raise ValueError("found another kind of y, a or sets, expected whole numbers and a list")
        return {**row, "file": relative_file(row["file"])}
    except (ValueError, KeyError, TypeError) as error:
        raise AimfairError(f"{where}: {type(error).__name__}: {error}; run: aimfair generate") from error
