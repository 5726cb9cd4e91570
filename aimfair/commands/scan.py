"""``aimfair scan``: examines a whole data set before anything is trained on it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aimfair.base.errors import ConfigError
from aimfair.commands.settings import Overrides, add_config, find_config

if TYPE_CHECKING:
    from aimfair.scan.settings import ScanSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings to FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the findings")


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    """Prints the findings, and writes them to a file if one is named.

    Raises:
        AimfairError: a run would be refused; after the findings, in the words of that run.
        ConfigError: the settings cannot be used, or the file cannot be in the folder; before the scan.
        Interrupted: by Ctrl-C.
        OSError: the file cannot be written.
    """
    settings = _settings(options, overrides)
    from rich.console import Console

    from aimfair.base.interrupt import Interrupt
    from aimfair.base.progress import Progress
    from aimfair.scan.examine import scan
    from aimfair.scan.show import show

    file: Path | None = options.json
    if file is not None and ((file.exists() and not file.is_file()) or not file.absolute().parent.is_dir()):
        found_there = (
            "a folder" if file.is_dir() else "a device" if file.exists() else f"no folder {str(file.parent)!r}"
        )
        raise ConfigError(f"--json {file}: found {found_there}, expected a file in an existing folder")
    with Interrupt() as interrupt:
        found, refusal = scan(settings, progress=Progress(quiet=options.quiet), interrupt=interrupt)
    show(found, Console())
    if file is not None:
        found.save(file)
    if refusal is not None:
        raise refusal
    return 0


def _settings(options: argparse.Namespace, overrides: Overrides) -> "ScanSettings":
    """The part of a run's settings that a scan needs; flags alone may give them."""
    from aimfair.config import load as config_file
    from aimfair.scan.settings import ScanSettings

    config_file.require_known(overrides)
    file = None
    if options.config is not None:
        file = find_config(options.config)
    elif options.run is not None:
        file = options.run / "config.yaml"
        if not file.exists():
            raise ConfigError(f"{options.run}: there is no run yet; give --config FILE or --data.kind and --data.root")
    elif not any(name.startswith("data.") for name in overrides):
        raise ConfigError(
            "give --config FILE, --run DIR, or the data set itself: --data.kind table --data.root DIR ..."
        )
    return config_file.load_part(ScanSettings, file, overrides)
