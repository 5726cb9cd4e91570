"""Image classifiers of timm, in timm's own folder layout (``timm.create_model("local-dir:<folder>")``). Optional.

Weights come from safetensors files alone, a folder's or the hub's; timm itself would also read pickles.
"""

from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from aimfair.base.errors import AimfairError, one_line, prefixed
from aimfair.base.files import write_json
from aimfair.training.backbones.origin import (
    CONFIG,
    WEIGHTS,
    Origin,
    import_library,
    origin_of,
    read_config,
    require_arguments,
    set_origin,
)
from aimfair.training.backbones.weights import load_weights, read_weights, write_weights

_SOURCES = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load"}
"""Keys of timm's model description that locate weights; dropped for a folder that holds them."""


def build(name: str, arguments: dict[str, Any], classes: int) -> nn.Module:
    """A model with random weights.

    Args:
        name: of timm's registry, with or without a tag; prefixes of other sources are not followed.
        arguments: of the architecture; ``model.config`` in errors.
    """
    require_arguments(arguments, "model.config")
    with prefixed("model.factory"):
        return _create(name, arguments, classes)


def build_pretrained(name: str, classes: int, allow_download: bool) -> nn.Module:
    """A model with timm's weights, with a new head if the number of classes differs.

    Raises:
        AimfairError: unknown, not in the hub's cache, or damaged.
    """
    timm = _library()
    _require_known(timm, name)
    path = _cached(timm, name, allow_download)
    read_weights(path)  # checked here, as timm does not
    return _create(name, {}, classes, path)


def build_from_folder(folder: Path, classes: int) -> nn.Module:
    """A model from a folder in timm's layout, with a new head if the number of classes differs."""
    name, arguments, cfg, stored = _described(folder)
    read_weights(folder / WEIGHTS)
    with prefixed(str(folder / CONFIG)):
        return _create(name, arguments, classes, folder / WEIGHTS, {**cfg, "num_classes": stored})


def save(model: nn.Module, folder: Path) -> None:
    """timm's :data:`CONFIG`, then the weights."""
    origin = origin_of(model)
    assert origin is not None
    cfg = {key: value for key, value in cast(dict[str, Any], model.pretrained_cfg).items() if key not in _SOURCES}
    cfg["num_classes"] = origin.classes
    description: dict[str, Any] = {
        "architecture": cfg.pop("architecture"),
        "num_classes": origin.classes,
        "num_features": model.num_features,
        "pretrained_cfg": {key: value for key, value in cfg.items() if value is not None},
    }
    if origin.arguments:
        description["model_args"] = origin.arguments
    write_json(folder / CONFIG, description)
    write_weights(folder / WEIGHTS, model)


def load(folder: Path) -> nn.Module:
    """The model of a folder that :func:`save` wrote."""
    name, arguments, cfg, classes = _described(folder)
    with prefixed(str(folder / CONFIG)):
        model = _create(name, arguments, classes, cfg=cfg)
    load_weights(folder / WEIGHTS, model)
    return model


def normalization(name: str | Path) -> tuple[list[float], list[float]] | None:
    """``(mean, std)`` of the images on which the weights of a name, or of a folder, were trained; as they say it."""
    cfg = _described(name)[2] if isinstance(name, Path) else _pretrained_cfg(_library(), name)
    return (cfg["mean"], cfg["std"]) if cfg.get("mean") and cfg.get("std") else None


def _create(
    name: str,
    arguments: dict[str, Any],
    classes: int,
    weights: Path | None = None,
    cfg: dict[str, Any] | None = None,
) -> nn.Module:
    timm = _library()
    _require_known(timm, name)
    overlay = {key: value for key, value in (cfg or {}).items() if key not in _SOURCES}
    if weights is not None:
        overlay |= {"file": str(weights), "custom_load": False, "source": ""}
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=overlay or None,
            num_classes=classes,
            **arguments,
        )
    except Exception as error:  # each architecture checks its own arguments and may raise anything
        raise AimfairError(f"timm cannot make {name}: {one_line(error)}") from error
    set_origin(model, Origin("timm", name, arguments, classes))
    return model


def _described(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], int]:
    """Architecture, arguments, timm's description and classes of a folder, which is not trusted."""
    values, path = read_config(folder), folder / CONFIG
    name, arguments = values.get("architecture"), values.get("model_args", {})
    cfg, classes = values.get("pretrained_cfg", {}), values.get("num_classes")
    if not (isinstance(name, str) and isinstance(arguments, dict) and isinstance(cfg, dict)):
        raise AimfairError(f"{path}: not timm's: expected a string architecture and objects model_args, pretrained_cfg")
    if not isinstance(classes, int) or classes < 1:
        raise AimfairError(f"{path}: num_classes is {classes!r}, expected the number of classes of the weights")
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    require_arguments(arguments, f"{path}: model_args")
    return name, arguments, cfg, classes


def _cached(timm: ModuleType, name: str, allow_download: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repository = _pretrained_cfg(timm, name).get("hf_hub_id")
    if not repository:
        raise AimfairError(f"timm has no weights for {name} on the hub; give a folder")
    path = try_to_load_from_cache(repository, WEIGHTS)
    if isinstance(path, str):
        return Path(path)
    if not allow_download:
        raise AimfairError(
            f"timm:{name}: {repository} is not in the hub's cache, {constants.HF_HUB_CACHE}; download"
            " it with --model.allow_download true"
        )
    try:
        return Path(hf_hub_download(repository, WEIGHTS))
    except Exception as error:  # the hub's client may raise anything
        raise AimfairError(f"timm:{name}: cannot be fetched: {one_line(error)}") from error


def _pretrained_cfg(timm: ModuleType, name: str) -> dict[str, Any]:
    _require_known(timm, name)
    cfg = timm.get_pretrained_cfg(name)
    return cast(dict[str, Any], cfg.to_dict()) if cfg is not None else {}


def _require_known(timm: ModuleType, name: str) -> None:
    """Also keeps out ``hf-hub:`` and ``local-dir:``, which timm would follow."""
    if timm.is_model(name):
        return
    near = timm.list_models(f"*{name[:8].replace('[', '')}*")[:3] if name else []
    hint = f"; there is {', '.join(near)}" if near else ""
    raise AimfairError(f"timm knows no model {name!r}{hint}")


def _library() -> ModuleType:
    return import_library("timm")
