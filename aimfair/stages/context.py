"""What the stages of one process share: its threads and network access, and the real images of the run."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from aimfair.base.device import choose_device, tuning_device
from aimfair.config import Config
from aimfair.data.images import ImageSet, Splits
from aimfair.evaluation.predictions import save_logits
from aimfair.run.directory import Run
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.history import History
from aimfair.training.models import build_model, load_model, load_sharded, save_model
from aimfair.training.predict import predict
from aimfair.training.processes import Processes, require_same_images

_LOADED: WeakKeyDictionary[Run, Splits] = WeakKeyDictionary()
_SYNTHETIC: WeakKeyDictionary[Run, dict[str, ImageSet]] = WeakKeyDictionary()


def prepare_process(config: Config) -> None:
    """Sets the number of threads, and keeps the process offline unless the settings allow downloads."""
    if not (config.generate.allow_download or config.model.allow_download):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def processes_of(run: Run) -> Processes:
    """The processes that do the stages of a run."""
    return Processes(run.ranks, run.config.distributed)


def preparation(threads: int) -> Callable[[Config], None]:
    """What other processes do before a step; ``threads``: that they compute with."""
    path = [os.path.abspath(folder) for folder in sys.path]
    return partial(_prepare_worker, threads=threads, path=path)


def _prepare_worker(config: Config, threads: int, path: list[str]) -> None:
    """``path``: ``sys.path`` of the process that the steps are done for."""
    prepare_process(config)
    torch.set_num_threads(threads)
    sys.path += [folder for folder in path if folder not in sys.path]


def initial_model(run: Run, seed: int) -> nn.Module:
    """A new model, on the device to train on; sharded if the processes hold it together."""
    config, classes = run.config, len(splits_of(run).target_names)
    device = tuning_device(config.device, run.ranks)
    if not processes_of(run).sharded:
        return build_model(config.model, classes, seed).to(device)
    folder = run.baseline(seed).with_name("initial")
    if run.ranks.leads:
        save_model(build_model(config.model, classes, seed), folder)
    run.ranks.meet()
    model = load_sharded(folder, config.model, device)
    run.ranks.meet()
    if run.ranks.leads:
        shutil.rmtree(folder)
    return model


def trained_model(run: Run, folder: Path, device: torch.device) -> nn.Module:
    """A model of the run, on a device; sharded if the processes hold it together."""
    if processes_of(run).sharded:
        return load_sharded(folder, run.config.model, device)
    return load_model(folder, run.config.model).to(device)


def write_logits(run: Run, seed: int, name: str, images: ImageSet, path: Path, title: str) -> None:
    """Writes what a model of the run predicts for images.

    Args:
        name: of a method, or the biased model.
        title: of the progress.
    """
    require_same_images(run.ranks, {f"the images of {title}": images})
    device = choose_device(run.config.device, run.ranks)
    with run.progress.task(title, len(images)) as task:
        logits = predict(
            trained_model(run, run.model(seed, name), device),
            images,
            run.config.model,
            batch_size=run.config.evaluate.batch_size,
            device=device,
            ranks=run.ranks,
            task=task,
            interrupt=run.interrupt,
        )
    if run.ranks.leads:
        save_logits(path, logits)


def keep(run: Run, model: nn.Module, history: History, folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the result of a training, and removes its checkpoint: process 0 does, but of a sharded model all do."""
    if run.ranks.leads or processes_of(run).sharded:
        save_model(model, folder)
    if run.ranks.leads:
        history.save(folder)
        checkpoint.remove()


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


def synthetic_of(run: Run, which: Literal["balanced", "biased", "held_out"]) -> ImageSet:
    """One of the sets of synthetic images of a run, loaded at the first call."""
    from aimfair.generation.manifest import Manifest

    loaded = _SYNTHETIC.setdefault(run, {})
    if which not in loaded:
        data = run.config.data
        loaded[which] = Manifest(run.synthetic).load(
            which, data.image_size, data.fit, log=run.log, progress=run.progress, interrupt=run.interrupt
        )
    return loaded[which]
