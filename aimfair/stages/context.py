"""What the stages of one process share: its threads and network access, and the real images of the run."""

import os
import sys
from typing import Literal
from weakref import WeakKeyDictionary

from aimfair.config import Config
from aimfair.data.images import ImageSet, Splits
from aimfair.run.directory import Run
from aimfair.training.processes import Processes

_LOADED: WeakKeyDictionary[Run, Splits] = WeakKeyDictionary()
_SYNTHETIC: WeakKeyDictionary[Run, dict[str, ImageSet]] = WeakKeyDictionary()


def prepare_process(config: Config) -> None:
    """Sets the number of threads, and keeps the process offline unless the settings allow downloads."""
    if not (config.generate.allow_download or config.model.allow_download):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)


def processes_of(run: Run) -> Processes:
    """The processes that do the stages of a run."""
    return Processes(run.ranks, run.config.distributed)


def prepare_worker(config: Config, threads: int, path: list[str]) -> None:
    """A process that does steps for another one: it computes with as many threads, and finds the same modules.

    Args:
        path: ``sys.path`` of the other one.
    """
    import torch

    prepare_process(config)
    torch.set_num_threads(threads)
    sys.path += [folder for folder in path if folder not in sys.path]


def splits_of(run: Run) -> Splits:
    """The real images of a run, loaded at the first call.

    Raises:
        AimfairError: the data set cannot be used.
        ConfigError: its groups are not those of the prompts.
    """
    from aimfair.data.load import load_splits

    if run not in _LOADED:
        splits = load_splits(run.config.data, log=run.log, progress=run.progress, interrupt=run.interrupt)
        # The settings of most kinds state the groups, and config has compared them; those of a table are in its rows.
        run.config.prompts.require_groups(splits.target_names, splits.protected_names)
        _LOADED[run] = splits
    return _LOADED[run]


def provide_splits(run: Run, splits: Splits) -> None:
    """Makes these the real images of a run, in place of those that its settings name."""
    _LOADED[run] = splits


def synthetic_of(run: Run, which: Literal["balanced", "biased"]) -> ImageSet:
    """One of the two sets of synthetic images of a run, loaded at the first call."""
    from aimfair.generation.manifest import Manifest

    loaded = _SYNTHETIC.setdefault(run, {})
    if which not in loaded:
        data = run.config.data
        loaded[which] = Manifest(run.synthetic).load(
            which, data.image_size, data.fit, log=run.log, progress=run.progress, interrupt=run.interrupt
        )
    return loaded[which]
