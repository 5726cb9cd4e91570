"""Where lies what takes long to make and can be made anew: shared by all runs, to be deleted at any time."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from aimfair.base.interrupt import Interrupt


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/aimfair/<name>``, or ``~/.cache/aimfair/<name>``."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "aimfair" / name


@contextlib.contextmanager
def locked(path: Path, interrupt: Interrupt, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock on ``path``, once others have let go of it. The kernel frees it when its holder dies.

    Args:
        waiting: called once if others hold it.
    """
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                    waiting = None
                interrupt.check()
                time.sleep(0.1)
        yield
