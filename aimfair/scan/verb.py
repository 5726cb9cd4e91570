"""``aimfair scan``: a whole data set looked at before anything is trained on it."""

from pathlib import Path

from rich.console import Console

from aimfair.config import Config
from aimfair.run.interrupt import Interrupt
from aimfair.run.progress import Progress
from aimfair.scan.examine import scan
from aimfair.scan.show import show


def scan_data(config: Config, json_file: Path | None, *, quiet: bool = False) -> int:
    """Prints what a scan finds, and writes it to a file if one is named.

    Raises:
        AimfairError: a run would be refused; the same line, after what was found.
        Interrupted: by Ctrl-C; images that are decoded stay in the cache.
        OSError: the file cannot be written.
    """
    with Interrupt() as interrupt:
        found, refusal = scan(config, progress=Progress(quiet=quiet), interrupt=interrupt)
    show(found, Console())
    if json_file is not None:
        found.save(json_file)
    if refusal is not None:
        raise refusal
    return 0
