"""The families by pipeline class, as in a model's index."""

import json
from pathlib import Path
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.diffusion.families.family import Family
from aimfair.diffusion.families.flux import Flux
from aimfair.diffusion.families.sd3 import StableDiffusion3
from aimfair.diffusion.families.sdxl import StableDiffusionXL
from aimfair.diffusion.families.stable_diffusion import StableDiffusion

_INDEX = "model_index.json"

_FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), StableDiffusion3(), Flux())


def family_of(folder: Path) -> Family:
    """The family of a model in diffusers' layout.

    Raises:
        AimfairError: the family is not supported, or a component is missing.
    """
    index = _index(folder)
    for family in _FAMILIES:
        if family.pipeline == index["_class_name"]:
            break
    else:
        known = "; ".join(f"{family.pipeline} ({family.models})" for family in _FAMILIES)
        raise AimfairError(f"{folder / _INDEX}: a {index['_class_name']}, expected one of: {known}")
    wanted = (*family.components, *(set(family.optional) - set(absent(folder, family))))
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        raise AimfairError(f"{folder}: incomplete: {', '.join(missing)} missing; fetch or copy it again")
    return family


def absent(folder: Path, family: Family) -> dict[str, None]:
    """The optional components that the model does not have, as arguments of diffusers."""
    index = _index(folder)
    return {name: None for name in family.optional if index.get(name, [None])[0] is None}


def _index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AimfairError(f"{path}: not the index of a model in diffusers' layout: {error}") from error
    return index
