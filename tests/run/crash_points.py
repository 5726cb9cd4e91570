"""A program: works in a run directory, dies by SIGKILL before a call that touches the disk, and is started again.

Does so for each such call, and prints how many there are. Run as ``python -m tests.run.crash_points FOLDER``.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from aimfair.base.files import is_temporary, write_text
from aimfair.config import load as config_file
from aimfair.run.directory import Run
from aimfair.run.records import Records

CONFIG = config_file.load(Path(config_file.__file__).parents[1] / "configs" / "demo.yaml")
CALLS = {"open", "write", "flush", "truncate", "pwrite", "replace", "unlink", "mkdir", "flock", "close"}
STEPS = ("prompts", "train/1")


def work(folder: Path) -> None:
    """Two steps, the second of which reads what the first made."""
    with Run.open(folder, CONFIG, quiet=True) as run:
        for step in STEPS:
            inputs = {"step": step} | ({} if step == "prompts" else {"prompts": run.digest_of("prompts")})
            if run.is_done(step, inputs):
                continue
            output = folder / "made" / f"{step.replace('/', '-')}.txt"
            output.parent.mkdir(exist_ok=True)
            write_text(output, f"{step}\n" * 1000)
            run.finish(step, inputs, [output])


def die_at(point: int) -> None:
    """SIGKILL before the call of this number."""
    calls = count()

    def profile(_: FrameType, event: str, function: Any) -> None:
        touches = event == "c_call" and function.__name__ in CALLS and not isinstance(function.__self__, io.StringIO)
        if touches and next(calls) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def in_child(function: Callable[[], None]) -> int:
    """The wait status of a process that does this."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def killed_work(folder: Path, point: int) -> None:
    die_at(point)
    work(folder)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a run but those that hold times and process numbers."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".jsonl" and path.name != ".lock" and "stages" not in path.parts
    }


def check(folder: Path) -> None:
    """What is there at any moment: whole settings, and whole files behind every record."""
    if (folder / "config.yaml").exists():
        config_file.load(folder / "config.yaml")
    for step in STEPS:
        if (folder / "stages" / f"{step}.json").exists():
            assert Records(folder).digest(step)
    for path in (folder / "made").glob("*.txt"):
        assert is_temporary(path.name) or len(path.read_text().splitlines()) == 1000


def main(folder: Path) -> None:
    os.fsync = lambda _: None  # slow, and a process that is killed, unlike a machine, loses no write
    whole = folder / "whole"
    assert in_child(lambda: work(whole)) == 0
    digests = {step: Records(whole).digest(step) for step in STEPS}
    for point in count():
        run = folder / str(point)
        status = in_child(lambda run=run, point=point: killed_work(run, point))
        if status == 0:
            print(point)
            return
        assert os.WIFSIGNALED(status), f"point {point}: status {status}"
        if run.exists():
            check(run)
        assert in_child(lambda run=run: work(run)) == 0, f"point {point}: the run does not go on"
        assert contents(run) == contents(whole), f"point {point}: another result"
        assert {step: Records(run).digest(step) for step in STEPS} == digests


if __name__ == "__main__":
    main(Path(sys.argv[1]))
