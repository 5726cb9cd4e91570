"""A program: takes over steps in a variant of a run and dies by SIGKILL before a call that touches the disk.

Does so for each such call, and prints how many there are. Run as ``python -m tests.ablation.crash_points FOLDER``.
"""

import os
import sys
from itertools import count
from pathlib import Path

from aimfair.base.files import write_text
from aimfair.run.directory import Run
from tests.run.crash_points import CALLS, CONFIG, die_at, in_child

CALLS.add("link")


def make(folder: Path) -> None:
    """A run with a finished step of several files."""
    with Run.open(folder, CONFIG, quiet=True) as run:
        for name in ("a", "b", "inner/c"):
            path = run.baseline(1) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, name)
        run.finish("train/1", {"lr": 1}, [run.baseline(1)])


def take_over(folder: Path) -> None:
    with Run.open(folder, CONFIG, quiet=True) as variant:
        assert variant.is_done("train/1", {"lr": 1})


def killed(folder: Path, point: int) -> None:
    die_at(point)
    take_over(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def main(folder: Path) -> None:
    os.fsync = lambda _: None  # slow, and a process that is killed, unlike a machine, loses no write
    make(folder)
    with Run.open(folder, CONFIG, quiet=True) as run:
        expected, texts = run.digest_of("train/1"), names(run.baseline(1))
    for point in count():
        variant = folder / "ablations" / "x" / str(point)
        status = in_child(lambda variant=variant, point=point: killed(variant, point))
        if status == 0:
            print(point)
            return
        assert os.WIFSIGNALED(status), f"point {point}: status {status}"
        assert in_child(lambda variant=variant: take_over(variant)) == 0, f"point {point}: it does not go on"
        with Run.open(variant, CONFIG, quiet=True) as again:
            assert again.digest_of("train/1") == expected
            assert names(again.baseline(1)) == texts, f"point {point}: stray files"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
