"""Checks before the first image is made: every later stage is rehearsed on a few images."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from aimfair.base.device import choose_device, tuning_device
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.config.unused import without_effect
from aimfair.data.images import ImageSet, Splits
from aimfair.methods import MethodSettings, Tune
from aimfair.methods.tune import NothingSelectedError, select_mask
from aimfair.methods.work import Work
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.selective.selection import NothingInCommonError
from aimfair.selective.sensitivity import Sensitivity
from aimfair.stages.context import processes_of, splits_of, trained_model
from aimfair.training.execution import named_failure
from aimfair.training.head import head_names
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_sharded, preprocessing_caution, save_model
from aimfair.training.optimizer import require_offloadable
from aimfair.training.predict import predict
from aimfair.training.processes import out_of_memory
from aimfair.training.samplers import groups_of
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import OptimizerSettings
from aimfair.training.trial import try_classifier
from aimfair.tuning.sampler import require_optuna
from aimfair.tuning.space import with_values

IMAGES = 8
"""Of a rehearsal, at most, unless there are more groups."""


def check(run: Run, *, real_images: bool, sharded: bool = False) -> None:
    """Refuses devices, data, models and methods that a later stage could not use.

    Args:
        real_images: whether the real images are to be used; else noise of their size takes their place.
        sharded: whether several processes will hold the model together; then :func:`rehearse_together` is to follow.

    Raises:
        AimfairError: naming the setting.
    """
    config = run.config
    if tuning_device(config.device) != choose_device(config.device):
        run.log.warn("training and tuning run on the CPU: this aimfair was built without CUDA kernels")
    for line in without_effect(config):
        run.log.warn(line)
    if caution := preprocessing_caution(config.model):
        run.log.warn(caution)
    if config.tuned:
        require_optuna()
    require_offloadable(config.finetune, tuning_device(config.device), sharded=sharded)
    if real_images:
        splits = splits_of(run)
        _refuse_small_sources(config, len(splits.train))
        for contradiction in splits.contradictions(config.data.majority):
            run.log.warn(contradiction)
    if not sharded:
        with tempfile.TemporaryDirectory(prefix=".preflight-", dir=run.path) as folder:
            _rehearse(run, _few_images(run, real_images), Path(folder))


def rehearse_together(run: Run, *, real_images: bool) -> None:
    """The rehearsal of a sharded model: every process calls this, after process 0 has returned from :func:`check`.

    Raises:
        AimfairError: naming the setting; in one process at least.
    """
    folder = Path(run.ranks.of_first(lambda: tempfile.mkdtemp(prefix=".preflight-", dir=run.path)))
    try:
        few = _few_images(run, real_images)
        with out_of_memory(run.ranks, f"rehearsing on {len(few.train)} images"):
            _rehearse(run, few, folder)
        run.ranks.meet()
    finally:
        if run.ranks.leads:
            shutil.rmtree(folder, ignore_errors=True)


def _few_images(run: Run, real_images: bool) -> Splits:
    """Of the real images a few of each group, at least two for each process; or noise."""
    if not real_images:
        return _noise(run.config, 2 * run.ranks.size)
    splits, least = splits_of(run), max(IMAGES, 2 * run.ranks.size)
    return replace(splits, train=_few(splits.train, least), validation=_few(splits.validation, least))


def _refuse_small_sources(config: Config, real: int) -> None:
    """Every source of sensitivity must fill a batch; ``real``: number of training images."""
    groups = len(config.prompts.targets) * len(config.prompts.protected)
    left = 1 - config.tune.held_out if config.tuned else 1.0
    but = " that tune.held_out leaves" if config.tuned else ""
    for what, images in (
        (f"of generate.biased_total{but}", int(left * config.generate.biased_total)),
        (f"of generate.balanced_per_group{but}", int(left * config.generate.balanced_per_group * groups)),
        ("for training", real),
    ):
        if images < config.sensitivity.batch_size:
            raise ConfigError(
                f"sensitivity.batch_size: found {config.sensitivity.batch_size}, expected at most {images}, the images"
                f" {what}"
            )


def _few(images: ImageSet, most: int) -> ImageSet:
    """Up to ``most`` images, at least one of each group that is present."""
    groups = groups_of(images)
    count = int(groups.max()) + 1
    of_each = max(most // count, 1)
    return images.subset(np.concatenate([np.flatnonzero(groups == group)[:of_each] for group in range(count)]))


def _noise(config: Config, least: int) -> Splits:
    """Images of noise, two in each group of the prompts, or as many more as make ``least``."""
    targets, protected = len(config.prompts.targets), len(config.prompts.protected)
    of_each = max(2, -(-least // (targets * protected)))
    y, a = np.indices((targets, protected)).reshape(2, -1).repeat(of_each, axis=1)
    size = config.data.image_size
    pixels = generator("preflight").integers(0, 256, (len(y), size, size, 3), dtype=np.uint8)
    images = ImageSet(pixels, y, a, tuple(map(str, range(len(y)))))
    return Splits(images, images, images, tuple(map(str, range(targets))), tuple(map(str, range(protected))))


def _rehearse(run: Run, few: Splits, folder: Path) -> None:
    """Trains, saves, loads, measures, selects, tunes and predicts, for one epoch of a few images."""
    config, seed, classes = run.config, run.config.seeds[0], len(few.target_names)
    ranks, processes = run.ranks, processes_of(run)
    device = tuning_device(config.device, ranks)
    run.progress.line(f"checking the classifier and {len(config.methods)} methods on {len(few.train)} images")
    if processes.sharded:
        if ranks.leads:
            save_model(build_model(config.model, classes, seed), folder / "initial")
        ranks.meet()

    def initial() -> nn.Module:
        if processes.sharded:
            return load_sharded(folder / "initial", config.model, device)
        return build_model(config.model, classes, seed).to(device)

    def biased() -> nn.Module:
        try:
            return trained_model(run, folder / "biased", device)
        except AimfairError as error:
            raise AimfairError(f"{config.model.label}: a trained model does not load again: {error}") from error

    model = initial()
    try_classifier(model, config.model, few.train, classes, dict(_batch_sizes(config)))
    with named_failure(f"{config.model.label}: a trial training fails"):
        model = initial()
        training = Training(
            model,
            few.train,
            few.validation,
            _one_epoch(config.train),
            config.model,
            seed,
            name="train",
            interrupt=run.interrupt,
            processes=processes,
        )
        training.fit()
        save_model(model, folder / "biased")
        ranks.meet()
        predict(
            biased(),
            few.test.subset([0]),
            config.model,
            batch_size=1,
            device=choose_device(config.device, ranks),
            ranks=ranks,
        )
    with named_failure(f"{config.model.label}: sensitivity: a trial fails"):
        size = min(config.sensitivity.batch_size, len(few.train))
        settings = config.sensitivity.model_copy(update={"batch_size": size, "batches": 1})
        sources = dict.fromkeys(SOURCES, few.train)
        probe = measure_sensitivity(
            biased(), sources, settings, config.model, seed=seed, processes=processes, interrupt=run.interrupt
        )
    for name, method in config.methods.items():
        with named_failure(f"methods.{name}: a trial fails"):
            work = Work(
                name=f"methods.{name}",
                settings=_one_epoch(method.training_settings(config.train, config.finetune), method.least_epochs),
                preprocessing=config.model.model_copy(update={"compile": False}),  # it was compiled above
                seed=seed,
                folder=folder / name,
                splits=lambda: few,
                balanced=lambda: few.train,
                initial=initial,
                biased=biased,
                mask=partial(_mask, run, probe, name, method),
                interrupt=run.interrupt,
                processes=processes,
            )
            method.run(work)
            if name in config.tuned and (rules := config.space(name).rules):
                model = biased()
                for rule, criterion in rules:
                    values = {"rule": rule, "criterion": criterion, "density": config.tune.densities[1]}
                    _mask(run, probe, name, with_values(method, values), model)


def _one_epoch(settings: OptimizerSettings, epochs: int = 1) -> OptimizerSettings:
    return settings.model_copy(update={"epochs": epochs})


def _mask(run: Run, probe: Sensitivity, name: str, method: MethodSettings, model: nn.Module) -> ParameterMask:
    """Of a method, by the gradients of a few images; all weights where two criteria agree on none of them."""
    assert isinstance(method, Tune)
    head = partial(head_names, model, run.config.data.image_size, f"methods.{name}")
    try:
        return select_mask(probe, name, method, run.config.seeds[0], head=head)
    except NothingSelectedError as error:
        if isinstance(error.__cause__, NothingInCommonError):  # with the gradients of all images they may agree
            return ParameterMask.full(model)
        raise


def _batch_sizes(config: Config) -> Iterator[tuple[str, int]]:
    """The settings of batches in training mode."""
    yield "train.batch_size", config.train.batch_size
    if config.finetune.batchnorm == "adapt":
        yield "finetune.batch_size", config.finetune.batch_size
    if config.sensitivity.train_mode:
        yield "sensitivity.batch_size", config.sensitivity.batch_size
