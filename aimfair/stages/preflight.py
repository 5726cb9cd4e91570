"""Checks before the first image is made: every later stage is rehearsed on a few images."""

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
from aimfair.stages.context import splits_of
from aimfair.training.execution import named_failure
from aimfair.training.head import head_names
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_model, preprocessing_caution, save_model
from aimfair.training.optimizer import require_offloadable
from aimfair.training.predict import predict
from aimfair.training.samplers import groups_of
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import OptimizerSettings
from aimfair.training.trial import try_classifier
from aimfair.tuning.sampler import require_optuna
from aimfair.tuning.space import with_values

IMAGES = 8
"""Of a rehearsal, at most, unless there are more groups."""


def check(run: Run, *, real_images: bool, rehearse: bool = True) -> None:
    """Refuses devices, data, models and methods that a later stage could not use.

    Args:
        real_images: whether the real images are to be used; else noise of their size takes their place.
        rehearse: whether the model fits into this process.

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
    require_offloadable(config.finetune, tuning_device(config.device), sharded=not rehearse)
    if real_images:
        splits = splits_of(run)
        _refuse_small_sources(config, len(splits.train))
        for contradiction in splits.contradictions(config.data.majority):
            run.log.warn(contradiction)
        few = replace(splits, train=_few(splits.train), validation=_few(splits.validation))
    else:
        few = _noise(config)
    if not rehearse:
        return
    with tempfile.TemporaryDirectory(prefix=".preflight-", dir=run.path) as folder:
        _rehearse(run, few, Path(folder))


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


def _few(images: ImageSet) -> ImageSet:
    """Up to :data:`IMAGES` images, at least one of each group that is present."""
    groups = groups_of(images)
    count = int(groups.max()) + 1
    of_each = max(IMAGES // count, 1)
    return images.subset(np.concatenate([np.flatnonzero(groups == group)[:of_each] for group in range(count)]))


def _noise(config: Config) -> Splits:
    """Two images of noise in each group of the prompts."""
    targets, protected = len(config.prompts.targets), len(config.prompts.protected)
    y, a = np.indices((targets, protected)).reshape(2, -1).repeat(2, axis=1)
    size = config.data.image_size
    pixels = generator("preflight").integers(0, 256, (len(y), size, size, 3), dtype=np.uint8)
    images = ImageSet(pixels, y, a, tuple(map(str, range(len(y)))))
    return Splits(images, images, images, tuple(map(str, range(targets))), tuple(map(str, range(protected))))


def _rehearse(run: Run, few: Splits, folder: Path) -> None:
    """Trains, saves, loads, measures, selects, tunes and predicts, for one epoch of a few images."""
    config, seed, classes = run.config, run.config.seeds[0], len(few.target_names)
    device = tuning_device(config.device)
    run.progress.line(f"checking the classifier and {len(config.methods)} methods on {len(few.train)} images")

    def initial() -> nn.Module:
        return build_model(config.model, classes, seed).to(device)

    def biased() -> nn.Module:
        try:
            return load_model(folder / "biased", config.model).to(device)
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
        )
        training.fit()
        save_model(model, folder / "biased")
        predict(biased(), few.test.subset([0]), config.model, batch_size=1, device=choose_device(config.device))
    with named_failure(f"{config.model.label}: sensitivity: a trial fails"):
        size = min(config.sensitivity.batch_size, len(few.train))
        settings = config.sensitivity.model_copy(update={"batch_size": size, "batches": 1})
        sources = dict.fromkeys(SOURCES, few.train)
        probe = measure_sensitivity(biased(), sources, settings, config.model, seed=seed, interrupt=run.interrupt)
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
