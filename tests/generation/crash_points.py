"""A program: makes images, dies by SIGKILL before each of its calls that touch the disk, and is started again.

Then the same for images of another recipe in place of those. Prints how many points there were. Run as
``python -m tests.generation.crash_points FOLDER``.
"""

import os
import shutil
import sys
import threading
from itertools import count
from pathlib import Path

import numpy as np

from aimfair.base.files import is_temporary
from aimfair.generation.job import Job
from aimfair.generation.manifest import Manifest
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import NoiseSampler, small_plan
from tests.run.crash_points import CALLS, die_at, in_child

CALLS |= {"rename", "rmdir"}


def every_third_is_black(seed: int, pixels: np.ndarray) -> np.ndarray:
    return pixels * 0 if seed % 3 == 0 else pixels


def work(folder: Path, recipe: str) -> None:
    """Three images of 8 x 8 pixels in two batches; of a recipe in tar files, in two of these."""
    settings = GenerateSettings(batch_size=2, max_rejections=1, image_format="png")
    if recipe.endswith("tar"):
        settings = settings.model_copy(update={"storage": "webdataset", "images_per_shard": 2})
    job = Job(folder, small_plan()[:3], Provenance({"recipe": recipe}), settings, 8, overwrite=True)
    job.run(lambda: NoiseSampler(8, every_third_is_black))


def killed_work(folder: Path, recipe: str, point: int) -> None:
    die_at(point)
    threading.setprofile(sys.getprofile())
    work(folder, recipe)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lasting(folder: Path) -> dict[str, bytes]:
    """Without what a killed writer leaves, which a run removes when it is opened."""
    return {name: data for name, data in contents(folder).items() if not is_temporary(Path(name).name)}


def check(folder: Path) -> None:
    """At any moment every line of the manifest, but for half a line at its end, has its image."""
    manifest = Manifest(folder)
    for record in manifest.records.values():
        assert manifest.source.read_rgb(record.file, 64).size == (8, 8)


def kill_everywhere(folder: Path, recipe: str, start: Path | None) -> int:
    """Number of points; at each, a folder as ``start`` was cut off and continued."""
    whole = folder / f"whole-{recipe}"
    work(whole, recipe)
    for point in count():
        made = folder / recipe / str(point) / "synthetic"
        if start is not None:
            shutil.copytree(start, made)
        else:
            made.parent.mkdir(parents=True)
        status = in_child(lambda made=made, point=point: killed_work(made, recipe, point))
        if status == 0:
            return point
        if made.exists():
            check(made)
        work(made, recipe)
        assert lasting(made) == contents(whole), f"point {point}: other images"
        assert [path.name for path in made.parent.iterdir()] == ["synthetic"], f"point {point}: something is left"
        shutil.rmtree(made.parent)
    raise AssertionError


def main(folder: Path) -> None:
    os.fsync = lambda _: None  # slow, and for the loss of power, which this is not
    points = kill_everywhere(folder, "a", None) + kill_everywhere(folder, "b", folder / "whole-a")
    points += kill_everywhere(folder, "a in tar", None) + kill_everywhere(folder, "b in tar", folder / "whole-a in tar")
    print(points)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
