"""The families by pipeline class, as in a model's index."""

import json
from pathlib import Path
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.diffusion.families.family import Family
from aimfair.diffusion.families.flux import Flux
from aimfair.diffusion.families.flux2 import Flux2Klein
from aimfair.diffusion.families.lcm import LatentConsistency
from aimfair.diffusion.families.pixart import PixArtAlpha, PixArtSigma
from aimfair.diffusion.families.qwen_image import QwenImage
from aimfair.diffusion.families.sana import Sana, SanaSprint
from aimfair.diffusion.families.sd3 import StableDiffusion3
from aimfair.diffusion.families.sdxl import StableDiffusionXL
from aimfair.diffusion.families.stable_diffusion import StableDiffusion
from aimfair.diffusion.families.z_image import ZImage
from aimfair.diffusion.model import weights_of

_INDEX = "model_index.json"

_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
"""Files of tokenizers, each of which holds a whole vocabulary."""

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5")
"""Suffixes of files with weights, for the error message."""

_FAMILIES: tuple[Family, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
    Flux2Klein(),
    LatentConsistency(),
    PixArtAlpha(),
    PixArtSigma(),
    QwenImage(),
    Sana(),
    SanaSprint(),
    ZImage(),
)


def family_of(folder: Path) -> Family:
    """The family of a model in diffusers' layout.

    Raises:
        AimfairError: the family is not supported, or a component, its weights or its vocabulary is missing.
    """
    family = known_family(folder)
    wanted = (*family.components, *(set(family.optional) - set(absent(folder, family))))
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        raise AimfairError(f"{folder}: incomplete: {', '.join(missing)} missing; fetch or copy it again")
    for part in wanted:
        if part.startswith("tokenizer"):
            _require_vocabulary(folder / part)
        elif part != "scheduler":
            _require_weights(folder / part)
    return family


def known_family(folder: Path) -> Family:
    """The family that the index of a model names; raises AimfairError if there is none."""
    name = index_of(folder)["_class_name"]
    for family in _FAMILIES:
        if family.pipeline == name:
            return family
    raise unknown_family(folder)


def is_known(folder: Path) -> bool:
    """Whether a model is of one of the families; raises AimfairError if its index is missing or damaged."""
    return index_of(folder)["_class_name"] in [family.pipeline for family in _FAMILIES]


def unknown_family(folder: Path) -> AimfairError:
    """The error about a model that is of none."""
    known = "; ".join(f"{family.pipeline} ({family.models})" for family in _FAMILIES)
    return AimfairError(
        f"{folder / _INDEX}: a {index_of(folder)['_class_name']}, expected one of: {known}; or, in engine eager, any"
        " class of diffusers that makes images from prompts alone"
    )


def _require_vocabulary(component: Path) -> None:
    """Without its files transformers makes a tokenizer that knows no word."""
    if not any((component / name).is_file() for name in _VOCABULARIES):
        raise AimfairError(
            f"{component}: has no vocabulary, expected one of: {', '.join(_VOCABULARIES)}; fetch or copy it again"
        )


def _require_weights(component: Path) -> None:
    if not weights_of(component):
        others = sorted(path.name for path in component.iterdir() if path.suffix in _WEIGHTS)
        raise AimfairError(
            f"{component}: no usable weights: found {', '.join(others) or 'none'}, expected .safetensors files without"
            " .fp16 or .non_ema in their names; rename or convert them"
        )


def absent(folder: Path, family: Family) -> dict[str, None]:
    """The optional components that the model does not have, as arguments of diffusers."""
    index = index_of(folder)
    return {name: None for name in family.optional if index.get(name, [None])[0] is None}


def index_of(folder: Path) -> dict[str, Any]:
    """The index of a model in diffusers' layout.

    Raises:
        AimfairError: it is missing or damaged.
    """
    path = folder / _INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AimfairError(f"{path}: not the index of a model in diffusers' layout: {error}") from error
    return index
