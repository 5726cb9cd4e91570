"""``aimfair scan``: a whole data set looked at before anything is trained on it."""

from pathlib import Path

from rich.console import Console

from aimfair.base.errors import ConfigError
from aimfair.base.interrupt import Interrupt
from aimfair.base.progress import Progress
from aimfair.scan.examine import scan
from aimfair.scan.settings import ScanSettings
from aimfair.scan.show import show


def scan_data(config: ScanSettings, json_file: Path | None, *, quiet: bool = False) -> int:
    """Prints what a scan finds, and writes it to a file if one is named.

    Raises:
        AimfairError: a run would be refused; the same line, after what was found.
        ConfigError: the file can be in no folder that there is; before the scan.
        Interrupted: by Ctrl-C.
        OSError: the file cannot be written.
    """
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        found_there = "a folder" if json_file.is_dir() else f"no folder {str(json_file.parent)!r}"
        raise ConfigError(f"--json {json_file}: found {found_there}, expected a file in a folder that is there")
    with Interrupt() as interrupt:
        found, refusal = scan(config, progress=Progress(quiet=quiet), interrupt=interrupt)
    show(found, Console())
    if json_file is not None:
        found.save(json_file)
    if refusal is not None:
        raise refusal
    return 0
