"""Builds, saves and loads image classifiers of transformers, timm, torchvision or the user's own.

A model folder holds the backbone's own format, :data:`CONFIG` and :data:`WEIGHTS`: transformers and timm read
theirs; for torchvision and a user's own model the weights are a plain ``state_dict``, and the configuration names the
function that builds the module. No code in a model folder is ever executed.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from aimfair.base.errors import AimfairError, prefixed
from aimfair.base.files import way_out, write_json
from aimfair.base.seeds import derive_seed, forked_torch_rng, seed_torch
from aimfair.base.storage import local
from aimfair.selective.parameters import listing, named_parameters, require_tunable
from aimfair.training.backbones import hf, timm, torchvision
from aimfair.training.backbones.origin import CONFIG, WEIGHTS, make_own, origin_of, read_config
from aimfair.training.backbones.weights import (
    is_follower,
    load_weights,
    read_weights,
    require_finite,
    transplant,
    write_weights,
)
from aimfair.training.execution import named_failure
from aimfair.training.head import TWIN
from aimfair.training.settings import ModelSettings

__all__ = ["CONFIG", "WEIGHTS", "build_model", "load_model", "load_sharded", "preprocessing_caution", "save_model"]


def build_model(settings: ModelSettings, classes: int, seed: int) -> nn.Module:
    """A classifier of ``classes`` classes, on the CPU.

    Weights that are not pretrained depend on ``seed`` alone.

    Raises:
        AimfairError: the settings name no image classifier or a library that is not installed, or pretrained weights
            are missing, damaged or incomplete beyond the head.
    """
    with forked_torch_rng():
        seed_torch(derive_seed(seed, "initial weights"))
        model = _build(settings, classes)
    where = settings.label
    with named_failure(where):
        _require_storable(model.state_dict(keep_vars=True), where)
        require_finite(where, model.state_dict())
    try:
        require_tunable(named_parameters(model, trainable=False).items())  # optimizers take the frozen ones, too
    except (TypeError, ValueError) as error:
        raise AimfairError(f"{where}: {error}") from error
    return model


def _require_storable(state: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        AimfairError: an entry is no tensor that a model folder can hold, by name.
    """
    if lazy := [name for name, tensor in state.items() if is_lazy(tensor)]:
        raise AimfairError(
            f"{where}: {listing(lazy)} have no shape yet (lazy modules); run the model on an image once where it is"
            " made"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise AimfairError(f"{where}: {name!r} in its state_dict is of type {kind}, expected tensors alone")
        if value.is_meta:
            raise AimfairError(f"{where}: {name} has no values (it is on the meta device), expected a model on the CPU")
        if value.layout is not torch.strided or value.is_quantized:
            kind = "quantised" if value.is_quantized else f"of layout {value.layout}"
            raise AimfairError(f"{where}: {name} is {kind}, expected a dense tensor, which a model folder can hold")


def save_model(model: nn.Module, folder: Path) -> None:
    """Writes :data:`CONFIG` and then :data:`WEIGHTS`, each atomically. Of a sharded model process 0 does, and every
    process calls this.

    Raises:
        OSError: a file cannot be written; the previous one is unchanged.
        AimfairError: the model is not from :func:`build_model` or :func:`load_model`.
    """
    if is_follower(model):
        write_weights(folder / WEIGHTS, model)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if hf.is_of_transformers(model):
        hf.save(model, folder)
        return
    origin = origin_of(model)
    if origin is None:
        raise AimfairError(
            f"{folder}: a {type(model).__name__} of unknown origin cannot be saved so that it loads again"
        )
    if origin.library == "timm":
        timm.save(model, folder)
        return
    values = {"factory": origin.library, "name": origin.name, "arguments": origin.arguments}
    write_json(folder / CONFIG, {**values, "num_classes": origin.classes})
    write_weights(folder / WEIGHTS, model)


def load_model(folder: Path, settings: ModelSettings | None = None) -> nn.Module:
    """A model that :func:`save_model` wrote, on the CPU.

    Args:
        settings: of the run; a user's own function is imported only if they name it, so that a foreign folder cannot
            run code.

    Raises:
        AimfairError: naming the file: it is missing, damaged, holds NaN or infinite weights, those of another
            architecture (names listed), or names a function that the settings do not. Pickled weights are never read.
    """
    try:
        values = read_config(folder)
    except AimfairError as error:
        raise AimfairError(f"{error}; {way_out(folder / CONFIG, 'train again')}") from error
    with forked_torch_rng():  # of random weights, which are replaced
        if "factory" in values:
            model = _load_made(folder, values, settings)
        elif "architecture" in values:
            model = timm.load(folder)
        else:
            model = hf.load(folder, values)
    return model


def load_sharded(folder: Path, settings: ModelSettings | None, device: torch.device) -> nn.Module:
    """As :func:`load_model`, with the weights sharded over all processes, which call this together.

    No process holds more than its rows of each tensor, and one whole tensor while it is made.

    Raises:
        AimfairError: as there; or a parameter that cannot be sharded.
    """
    from aimfair.training.sharding import shard, without_weights

    with without_weights():
        model = load_model(folder, settings)
    twin = copy.deepcopy(model).to("meta")
    model = shard(model, folder / WEIGHTS, device)
    model.__dict__[TWIN] = twin  # not as a part of it
    return model


def preprocessing_caution(settings: ModelSettings) -> str | None:
    """A warning if the pretrained model was trained with another mean and standard deviation than the run's."""
    with prefixed("model.pretrained"):
        found = _normalization(settings)
    try:
        mean, std = (tuple(map(float, values)) for values in found or ())
    except (TypeError, ValueError):  # it does not say, or not in numbers
        return None
    if len(mean) != 3 or len(std) != 3:  # of grey images, or one for all channels
        return None
    if all(
        abs(a - b) < 1e-3 for a, b in zip((*mean, *std), (*settings.mean, *settings.std), strict=True)
    ):  # files round them
        return None
    return (
        f"model.pretrained: {settings.pretrained} was trained on images normalised with mean {list(mean)} and std"
        f" {list(std)}, the run has {list(settings.mean)} and {list(settings.std)}; to use the model's, set model.mean"
        " and model.std"
    )


def _build(settings: ModelSettings, classes: int) -> nn.Module:
    if settings.pretrained is None and settings.factory is None:
        return hf.build(settings.config, classes)
    library, name = settings.source
    if settings.pretrained is None:
        build = {"timm": timm.build, "torchvision": torchvision.build, "own": make_own}[library]
        return build(name, settings.config, classes)
    with prefixed("model.pretrained"):
        if library == "folder":
            return _build_from_folder(local(name), classes)
        pretrained = {"timm": timm, "torchvision": torchvision, "hf": hf}[library].build_pretrained
        model: nn.Module = pretrained(name, classes, settings.allow_download)
        return model


def _build_from_folder(folder: Path, classes: int) -> nn.Module:
    """From a folder of any library, with a new head if the number of classes differs."""
    if not folder.is_dir():
        raise AimfairError(f"{folder}: no such folder, expected one with {CONFIG} and {WEIGHTS}")
    values = read_config(folder)
    if "factory" in values:
        if values["factory"] != "torchvision":
            raise AimfairError(
                f"{folder / CONFIG}: made by the function {values.get('name')!r}, which is not run; give it as"
                " model.factory and let it load the weights"
            )
        name, arguments, _ = _made(folder, values)
        with prefixed(str(folder / CONFIG)):
            model = torchvision.make(name, arguments, classes)
        transplant(read_weights(folder / WEIGHTS), model, str(folder / WEIGHTS))
        return model
    if "architecture" in values and "model_type" not in values:
        return timm.build_from_folder(folder, classes)
    return hf.build_pretrained(str(folder), classes, allow_download=False)


def _load_made(folder: Path, values: dict[str, Any], settings: ModelSettings | None) -> nn.Module:
    name, arguments, classes = _made(folder, values)
    if values["factory"] == "torchvision":
        with prefixed(str(folder / CONFIG)):
            model = torchvision.make(name, arguments, classes)
    else:
        trusted = None if settings is None else settings.factory
        if name != trusted:
            raise AimfairError(
                f"{folder / CONFIG}: made by {name!r}, which is imported only if the settings' model.factory is that"
                f" too, found {trusted!r}"
            )
        model = make_own(name, arguments, classes)
    load_weights(folder / WEIGHTS, model)
    return model


def _made(folder: Path, values: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
    name, arguments, classes = (values.get(key) for key in ("name", "arguments", "num_classes"))
    if values["factory"] not in ("torchvision", "own") or not (
        isinstance(name, str) and isinstance(arguments, dict) and isinstance(classes, int) and classes > 0
    ):
        raise AimfairError(
            f"{folder / CONFIG}: expected factory torchvision or own, a name, arguments and num_classes, found"
            f" {values['factory']!r}, {name!r}, {arguments!r}, {classes!r}"
        )
    return name, arguments, classes


def _normalization(settings: ModelSettings) -> tuple[list[float], list[float]] | None:
    if settings.pretrained is None:
        return None
    library, name = settings.source
    if library == "timm":
        return timm.normalization(name)
    if library == "torchvision":
        return torchvision.normalization(name)
    if library == "folder":
        name = str(local(name))
    if library == "folder" and (Path(name) / CONFIG).exists():
        values = read_config(Path(name))
        if "architecture" in values and "model_type" not in values:
            return timm.normalization(Path(name))
    return hf.normalization(name, settings.allow_download)
