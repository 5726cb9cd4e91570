"""The folder of a job: of one recipe alone, and with files that hold what their names say."""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.base.files import is_temporary, write_json
from aimfair.data.decode import ImageError, content_digest, read_rgb
from aimfair.generation.manifest import DIGITS
from aimfair.generation.synthetic import MAX_PIXELS

IMAGES = "images"
JOB = "job.json"

_THREADS = 4  # that decode files


def recipe_of(folder: Path) -> dict[str, Any]:
    """What the images in a folder depend on; empty if there are none, or nobody knows."""
    path = folder / JOB
    recipe = _read(path) if path.exists() else None
    return recipe if isinstance(recipe, dict) else {}


def settle(folder: Path, job: dict[str, Any], *, overwrite: bool) -> None:
    """Leaves nothing in the folder that is not of this job.

    Args:
        overwrite: whether images of another job may be removed.

    Raises:
        AimfairError: there are some, and they may not; or the folder holds something else.
    """
    folder = folder.resolve()  # a link to a larger disk stays one
    doomed = folder.with_name(f".{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    path = folder / JOB
    if path.exists() and (found := recipe_of(folder)) != job:
        if not overwrite:
            raise AimfairError(f"{folder}: its images are of another job: {_differences(found, job)}; go back to that,"
                               " or make them anew with --overwrite")  # fmt: skip
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


def _differences(found: dict[str, Any], job: dict[str, Any]) -> str:
    """In words, by key; of settings those that differ."""
    if not found:
        return f"{JOB} is damaged"
    names = []
    for key in sorted(found.keys() | job.keys()):
        theirs, ours = found.get(key), job.get(key)
        if key == "generate" and isinstance(theirs, dict) and isinstance(ours, dict):
            names += [
                f"{key}.{name}" for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)
            ]
        elif theirs != ours:
            names.append(key)
    return f"{', '.join(names)} differ{'s' if len(names) == 1 else ''}"


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
            return content_digest(read_rgb(folder / file, MAX_PIXELS))[:DIGITS] == Path(file).stem[-DIGITS:]
        except ImageError:
            return False

    with ThreadPoolExecutor(_THREADS) as threads:
        intact = threads.map(is_whole, (file for _, file in files))
        return {key for (key, _), good in zip(files, intact, strict=True) if good}
