"""A program: copies images that were made elsewhere, dies by SIGKILL before each of its calls that touch the disk, and
is started again.

Then the same with a changed source, in place of those. Prints how many points there were. Run as
``python -m tests.generation.import_crash_points FOLDER``.
"""

import os
import shutil
import sys
import threading
from itertools import count
from pathlib import Path

from aimfair.data.settings import DataSettings
from aimfair.generation.imported import choose, copy_images
from aimfair.generation.manifest import Manifest
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.source import read_source
from tests.data.conftest import save_image
from tests.generation.crash_points import lasting
from tests.run.crash_points import CALLS, die_at, in_child

CALLS |= {"rename", "rmdir"}
SETTINGS = GenerateSettings(balanced_per_group=1, biased_total=2)
DATA = DataSettings(minority_ratio=0.5)


def work(source: Path, to: Path) -> None:
    """Six images of 12 x 10 pixels."""
    found = read_source(source, (2, 2), DATA)
    provenance = Provenance.imported(found.digest, SETTINGS, DATA, 2)
    copy_images(choose(found, SETTINGS, DATA, 2), to, provenance, SETTINGS, overwrite=True)


def killed_work(source: Path, to: Path, point: int) -> None:
    die_at(point)
    threading.setprofile(sys.getprofile())
    work(source, to)


def kill_everywhere(source: Path, folder: Path, start: Path | None) -> int:
    """Number of points; at each, a folder as ``start`` was cut off and continued."""
    whole = folder / "whole" / "synthetic"
    whole.parent.mkdir(parents=True)
    work(source, whole)
    for point in count():
        made = folder / str(point) / "synthetic"
        made.parent.mkdir()
        if start is not None:
            shutil.copytree(start, made)
        status = in_child(lambda made=made, point=point: killed_work(source, made, point))
        if status == 0:
            return point
        for record in Manifest(made).records.values():
            assert (made / record.file).stat().st_size > 0, f"point {point}: a manifest without its images"
        work(source, made)
        assert lasting(made) == lasting(whole), f"point {point}: other images"
        assert [path.name for path in made.parent.iterdir()] == ["synthetic"], f"point {point}: something is left"
        shutil.rmtree(made.parent)
    raise AssertionError


def main(folder: Path) -> None:
    os.fsync = lambda _: None  # slow, and for the loss of power, which this is not
    first, second = folder / "first", folder / "second"
    for number in range(12):
        save_image(first / f"{number % 4 // 2}_{number % 2}/{number}.png", number)
        save_image(second / f"{number % 4 // 2}_{number % 2}/{number}.png", 100 + number)
    points = kill_everywhere(first, folder / "a", None)
    print(points + kill_everywhere(second, folder / "b", folder / "a/whole/synthetic"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
