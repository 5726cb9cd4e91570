"""Where a model comes from: how its library, or a function of the user, builds the model that a folder holds."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.libraries import optional

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of a model folder, for models of any library."""

_ATTRIBUTE = "aimfair_origin"

_REFUSED = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights",
    "weights_backbone", "progress", "num_classes",
}  # fmt: skip
"""Arguments that would fetch weights, or read pickled ones, bypassing the settings."""

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules that add a prefix to the names of another's parameters."""


@dataclass(frozen=True)
class Origin:
    """How to build a model again, but for its weights.

    Attributes:
        library: timm, torchvision or own (a function of the user's).
        name: what that library calls it; of a user's function ``module:function``.
        arguments: of the factory, as JSON can hold them, without the number of classes.
        classes: the number of classes.
    """

    library: str
    name: str
    arguments: dict[str, Any]
    classes: int


def set_origin(model: nn.Module, origin: Origin) -> None:
    setattr(model, _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin | None:
    """What :func:`set_origin` set; None if nothing."""
    return getattr(model, _ATTRIBUTE, None)


def require_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Refuses arguments of a factory that a user may not give, or that a model folder cannot hold.

    Raises:
        AimfairError: naming ``where`` and the argument.
    """
    for key in sorted(arguments.keys() & _REFUSED):
        raise AimfairError(f"{where}.{key}: not a valid argument; model.pretrained names weights, the data the classes")
    for key, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AimfairError(f"{where}.{key}: {value!r} cannot be kept in a model folder: {error}") from error


def make_own(name: str, arguments: dict[str, Any], classes: int) -> nn.Module:
    """``function(num_classes=classes, **arguments)``.

    Args:
        name: ``module:function``, of the user's own settings: importing a module runs it.

    Raises:
        AimfairError: naming ``model.factory``: it cannot be imported, fails, or returns no module with weights.
    """
    require_arguments(arguments, "model.config")
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # it is a program
        raise AimfairError(
            f"model.factory: {name}: cannot be imported: {one_line(error)}; its folder must be on PYTHONPATH"
        ) from error
    try:
        model = function(num_classes=classes, **arguments)
        if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
            raise AimfairError(
                f"model.factory: {name}: returned {type(model).__name__}, expected a torch.nn.Module with parameters"
            )
        set_origin(model, Origin("own", name, arguments, classes))
    except AimfairError:
        raise
    except (Exception, SystemExit) as error:
        raise AimfairError(f"model.factory: {name}: failed: {type(error).__name__}: {one_line(error)}") from error
    if isinstance(model, _WRAPPERS) or hasattr(model, "_orig_mod"):  # of torch.compile, slow to import
        raise AimfairError(
            f"model.factory: {name}: returned {type(model).__name__}, which wraps a model; return the model itself"
        )
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """:data:`CONFIG` of a model folder.

    Raises:
        AimfairError: naming the file: it is missing, or not a JSON object.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AimfairError(f"{path}: no such file, expected a model folder with {CONFIG} and {WEIGHTS}") from None
    except IsADirectoryError:
        raise AimfairError(f"{path}: is a folder, expected a file") from None
    except ValueError as error:
        raise AimfairError(f"{path}: not a usable model configuration: {one_line(error)}") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise AimfairError(f"{path}: not a usable model configuration: expected a JSON object, found a {kind}")
    return values


def import_library(name: str) -> ModuleType:
    """A library of classifiers.

    Raises:
        AimfairError: it is not installed, or cannot be imported.
    """
    with optional("this model", name):
        library = importlib.import_module(name)
    return library
