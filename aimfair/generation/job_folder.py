"""The folder of a job: of one recipe alone, and with files that hold what their names say."""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aimfair.data.decode import ImageError, content_digest, read_rgb
from aimfair.errors import AimfairError
from aimfair.files import is_temporary, write_json
from aimfair.generation.manifest import DIGITS

IMAGES = "images"
JOB = "job.json"

_THREADS = 4  # that decode files
_MAX_PIXELS = 2**24  # of a file of ours


def recipe_of(folder: Path) -> dict[str, Any]:
    """What the images in a folder depend on; empty if there are none, or nobody knows."""
    path = folder / JOB
    recipe = _read(path) if path.exists() else None
    return recipe if isinstance(recipe, dict) else {}


def settle(folder: Path, job: dict[str, Any]) -> None:
    """Leaves nothing in the folder that is not of this job."""
    doomed = folder.with_name(f".{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    path = folder / JOB
    if path.exists() and _read(path) != job:
        folder.rename(doomed)  # at once: half of a folder could be taken for a job that was cut off
        shutil.rmtree(doomed)
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if foreign := sorted(entry.name for entry in folder.iterdir() if not is_temporary(entry.name)):
            raise AimfairError(
                f"{folder}: holds {', '.join(foreign[:3])} but no {JOB}, so it is no folder of synthetic images; "
                "move it away"
            )
        write_json(path, job)
    (folder / IMAGES).mkdir(exist_ok=True)


def _read(path: Path) -> Any:
    """None if it is damaged: what it vouched for cannot be known."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def whole(folder: Path, files: Sequence[tuple[tuple[int, int], str]]) -> set[tuple[int, int]]:
    """Those of (key, file) whose file holds the pixels that its name says."""

    def is_whole(file: str) -> bool:
        try:
            return content_digest(read_rgb(folder / file, _MAX_PIXELS))[:DIGITS] == Path(file).stem[-DIGITS:]
        except ImageError:
            return False

    with ThreadPoolExecutor(_THREADS) as threads:
        intact = threads.map(is_whole, (file for _, file in files))
        return {key for (key, _), good in zip(files, intact, strict=True) if good}
