"""A program: a language model's prompts are cut off by SIGKILL before a call that touches the disk, and continued.

Does so for each such call, from nothing and from half of the templates, and prints how many there are. Run as
``python -m tests.prompts.prompt_crash_points FOLDER``.
"""

import json
import os
import shutil
import sys
from contextlib import nullcontext, suppress
from itertools import count
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.files import is_temporary
from aimfair.config import Config
from aimfair.prompts.providers import Reply
from aimfair.run.directory import Run
from aimfair.stages import prompts
from tests.prompts.chat_server import briefs_in, good
from tests.prompts.test_providers import tree
from tests.run.crash_points import die_at, in_child

MADE = {"prompts.jsonl", "diversity.json", "templates.jsonl"}


class Model:
    """Answers well, the same to the same briefs, so many times and no more.

    Attributes:
        asked: numbers of the briefs.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.asked: set[int] = set()

    def ask(self, message: str, schema: object) -> Reply:
        if self.patience == 0:
            raise AimfairError("no more")
        self.patience -= 1
        briefs = briefs_in(message)
        self.asked |= {brief["number"] for brief in briefs}
        return Reply(good(briefs))


def work(folder: Path, *, point: int | None = None, patience: int = 9) -> set[int]:
    """The numbers of the templates that were asked for."""
    model = Model(patience)
    prompts._chat_model = lambda _: nullcontext(model)
    with Run.open(folder, Config.model_validate(tree(per_request=2)), quiet=True) as run:
        if point is not None:
            die_at(point)
        prompts.run(run)
    return model.asked


def kept(folder: Path) -> set[int]:
    """The numbers of the templates that are on the disk, but for half a line."""
    file = folder / "templates.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return {json.loads(line)["number"] for line in lines}


def made(folder: Path) -> dict[str, bytes]:
    left = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert not any(is_temporary(name) for name in left)
    return {name: data for name, data in left.items() if name in MADE}


def kill_everywhere(folder: Path, start: Path | None) -> int:
    """Number of points; at each, a folder as ``start`` was cut off and continued."""
    whole, cut = folder / "whole", folder / "cut"
    if not whole.exists():
        work(whole)
    before = kept(start) if start is not None else set()
    for point in count():
        if start is not None:
            shutil.copytree(start, cut)
        status = in_child(lambda point=point: work(cut, point=point))
        accepted = kept(cut)
        assert accepted >= before, f"point {point}: accepted templates are gone"
        assert work(cut).isdisjoint(accepted), f"point {point}: asked for again"
        assert made(cut) == made(whole), f"point {point}: other files"
        shutil.rmtree(cut)
        if status == 0:
            return point
    raise AssertionError


def main(folder: Path) -> None:
    os.fsync = lambda _: None  # slow, and for the loss of power, which this is not
    half = folder / "half"
    with suppress(AimfairError):
        work(half, patience=2)
    assert len(kept(half)) == 4
    print(sum(kill_everywhere(folder, start) for start in (None, half)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
