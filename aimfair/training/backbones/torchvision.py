"""Image classifiers of torchvision. Optional.

A model folder holds the plain ``state_dict`` in safetensors and a configuration with what :func:`make` needs::

    values = json.load(open("config.json"))
    model = torchvision.models.get_model(values["name"], num_classes=values["num_classes"], **values["arguments"])
    model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from aimfair.base.errors import AimfairError, one_line, prefixed
from aimfair.training.backbones.origin import Origin, import_library, require_arguments, set_origin
from aimfair.training.backbones.weights import transplant


def build(name: str, arguments: dict[str, Any], classes: int) -> nn.Module:
    """A model with random weights, of settings.

    Raises:
        AimfairError: naming ``model.factory`` or ``model.config``.
    """
    require_arguments(arguments, "model.config")
    with prefixed("model.factory"):
        return make(name, arguments, classes)


def make(name: str, arguments: dict[str, Any], classes: int) -> nn.Module:
    """A model with random weights, of torchvision's registry.

    Raises:
        AimfairError: an unknown name, or arguments that it does not take.
    """
    require_arguments(arguments, "arguments")
    torchvision = _library()
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise AimfairError(f"torchvision knows no image classifier {name!r}")
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **arguments)
    except Exception as error:  # each architecture checks its own arguments and may raise anything
        raise AimfairError(f"torchvision cannot make {name}: {one_line(error)}") from error
    set_origin(model, Origin("torchvision", name, arguments, classes))
    return model


def build_pretrained(name: str, classes: int, allow_download: bool) -> nn.Module:
    """A model with torchvision's weights, with a new head if the number of classes differs.

    Args:
        name: of the model, or ``model/weights`` with a name of its enumeration of weights, default ``DEFAULT``.

    Raises:
        AimfairError: unknown, missing or damaged weights.
    """
    model_name, weights = _weights(name)
    path = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(weights.url).path))
    if not path.exists() and not allow_download:
        raise AimfairError(
            f"torchvision:{name}: {path}: no such file; put {weights.url} there, or fetch it with model.allow_download"
        )
    model = make(model_name, {}, classes)
    try:
        # torchvision publishes pickles; weights_only admits tensors alone, check_hash verifies a download.
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise AimfairError(f"torchvision:{name}: not usable: {one_line(error)}") from error
    transplant(state, model, f"torchvision:{name}")
    return model


def normalization(name: str) -> tuple[list[float], list[float]] | None:
    """``(mean, std)`` of the images on which weights were trained."""
    preset = _weights(name)[1].transforms()
    return (list(preset.mean), list(preset.std)) if hasattr(preset, "mean") and hasattr(preset, "std") else None


def _weights(name: str) -> tuple[str, Any]:
    torchvision = _library()
    model_name, _, which = name.partition("/")
    if model_name not in torchvision.models.list_models(module=torchvision.models):
        raise AimfairError(f"torchvision knows no image classifier {model_name!r}")
    known = torchvision.models.get_model_weights(model_name)
    if which and which not in known.__members__:
        raise AimfairError(
            f"torchvision has no weights {which!r} of {model_name}; it has {', '.join(known.__members__)}"
        )
    return model_name, known[which or "DEFAULT"]


def _library() -> ModuleType:
    return import_library("torchvision")
