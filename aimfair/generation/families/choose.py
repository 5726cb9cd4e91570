"""The families by the pipeline that a model's index names."""

import json
from pathlib import Path

from aimfair.errors import AimfairError
from aimfair.generation.families.family import Family
from aimfair.generation.families.flux import Flux
from aimfair.generation.families.sd3 import StableDiffusion3
from aimfair.generation.families.sdxl import StableDiffusionXL
from aimfair.generation.families.stable_diffusion import StableDiffusion

_FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), StableDiffusion3(), Flux())


def family_of(folder: Path) -> Family:
    """The family of a model in diffusers' layout.

    Raises:
        AimfairError: it is none of ours, or a part of it is missing.
    """
    index = folder / "model_index.json"
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AimfairError(f"{index}: not the index of a model in diffusers' layout: {error}") from error
    for family in _FAMILIES:
        if family.pipeline == found:
            break
    else:
        known = "; ".join(f"{family.pipeline} ({family.models})" for family in _FAMILIES)
        raise AimfairError(f"{index}: a {found}, expected one of: {known}")
    if missing := [part for part in family.components if not (folder / part).is_dir()]:
        raise AimfairError(f"{folder}: incomplete: {', '.join(missing)} missing; fetch or copy it again")
    return family
