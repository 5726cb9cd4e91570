"""The arguments that several verbs share, and the settings and run directory that they name."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aimfair.base.errors import ConfigError

if TYPE_CHECKING:
    from aimfair.cluster.pool import Pool
    from aimfair.config import Config
    from aimfair.run.directory import Run

Overrides = dict[str, str]
"""Dotted key -> its value as typed, such as {"train.lr": "0.01"}."""

BUNDLED = Path(__file__).parents[1] / "configs"

FLAGS_FOR_SETTINGS = (
    "Every setting is a flag, too: --train.lr 0.01 --seeds 1,2. They are listed by: aimfair config --keys"
)


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="directory of the run (default: runs/<name of the config>)"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--run``, ``--config``, and the note on flags for settings."""
    add_run(parser)
    parser.epilog = FLAGS_FOR_SETTINGS
    parser.add_argument("--config", metavar="FILE", help="a YAML file, or the name of one that comes with aimfair")


def add_overwrite_and_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="let an existing run take other settings")
    add_quiet(parser)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress, only warnings, errors and results")


def add_pool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on", choices=("ray",), help="do independent steps side by side, in other processes that Ray starts"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: one of this machine)"
    )


def check_pool(options: argparse.Namespace) -> None:
    """Before anything is opened or waited for.

    Raises:
        ConfigError: the flags of :func:`add_pool` do not go together.
    """
    if options.on is not None:
        require_one_process(f"{options.verb} --on ray")
    elif options.address is not None:
        raise ConfigError("--address: needs --on ray")


@contextmanager
def pool_of(options: argparse.Namespace, run: "Run") -> "Iterator[Pool | None]":
    """The processes that ``--on`` names; None: this one alone.

    Raises:
        AimfairError: as :func:`aimfair.cluster.ray_pool.ray_pool`.
    """
    if options.on is None:
        yield None
        return
    from aimfair.cluster.ray_pool import ray_pool
    from aimfair.stages.context import prepare_process

    prepare_process(run.config)
    import torch

    config = run.config
    with ray_pool(
        options.address,
        config.cluster,
        threads=torch.get_num_threads(),
        uses_gpu=config.device != "cpu",
        warn=run.log.warn,
    ) as pool:
        run.log.tell(f"Ray: {pool.description}")
        yield pool


def refuse_overrides(verb: str, overrides: Overrides, instead: str = "") -> None:
    """Raises ConfigError if any setting was given to a verb that takes none."""
    if overrides:
        raise ConfigError(f"--{next(iter(overrides))}: {verb} takes no settings{instead}")


def require_one_process(verb: str) -> None:
    """Raises ConfigError in one of several processes, as torchrun starts them."""
    from aimfair.base.ranks import processes

    if processes() > 1:
        found = f"found WORLD_SIZE={processes()}, expected one process; start it without torchrun"
        raise ConfigError(f"aimfair {verb}: {found}")


def read_settings(name: str | None, directory: Path | None, overrides: Overrides) -> "tuple[Config, Path]":
    """The settings of a config, or else of an existing run, and the directory of the run.

    Args:
        name: a file, or the name of a bundled one; None: those of the run.
        directory: of the run; None: ``runs/<name of the config>``.

    Raises:
        ConfigError: neither is given or exists, or a setting cannot be used.
    """
    from aimfair.config import load as config_file
    from aimfair.run.directory import Run

    config_file.require_known(overrides)
    if name is not None:
        file = find_config(name)
        return config_file.load(file, overrides), directory or Path("runs") / file.stem
    if directory is None:
        raise ConfigError("give --config FILE for a new run, or --run DIR for one that was begun")
    config = Run.config_of(directory, overrides)
    if config is None:
        raise ConfigError(f"{directory}: there is no run yet; give --config FILE to begin one")
    return config, directory


def find_config(name: str) -> Path:
    """A file, or a bundled one by its name alone.

    Raises:
        ConfigError: there is neither.
    """
    bundled = sorted(file.stem for file in BUNDLED.glob("*.yaml"))
    if name in bundled:
        return BUNDLED / f"{name}.yaml"
    if not Path(name).is_file():
        found = "is a folder, expected a YAML file, or one" if Path(name).is_dir() else "no such file, and none"
        raise ConfigError(f"--config {name}: {found} of those included: {', '.join(bundled)}")
    return Path(name)
