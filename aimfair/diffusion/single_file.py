"""Models in a single .safetensors file: converted once into a folder in diffusers' layout, which is cached."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aimfair.base.checked_weights import refuse_broken_weights
from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import cache_folder, file_digest, sync, write_json
from aimfair.base.interrupt import NEVER
from aimfair.base.lock import locked
from aimfair.diffusion.families.registry import index_of, known_family
from aimfair.diffusion.load import diffusers_quietly
from aimfair.diffusion.model import CONVERTED, configuration, fingerprint, from_hub, model_folder
from aimfair.selective.storage import check_header

_CONFIGURATION = ("model_index.json", *(f"*/*.{end}" for end in ("json", "txt", "model", "jinja")))
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def converted(path: Path, base: str | None, allow_download: bool) -> Path:
    """The folder of the model in a file; made if it is not in the cache.

    Args:
        path: the file: a whole model, or its denoiser alone.
        base: ``generate.base``, the model from which configuration, tokenizers and what the file lacks are taken; None:
            the one that diffusers recognises, from the hub's cache, whose configuration and tokenizers alone are used:
            its weights may or may not be there.

    Raises:
        AimfairError: the file is missing or damaged, of no known family, or lacks weights that ``base`` lacks, too, or
            that no ``base`` is given for.
        OSError: the folder cannot be written.
    """
    if not path.is_file():
        raise AimfairError(f"generate.model: {path}: no such file")
    dtype = _dtype(path)
    origin = _recognised(path, allow_download) if base is None else model_folder(base, allow_download)
    of_origin, files = configuration(origin) if base is None else (fingerprint(origin), [])
    digest = hashlib.sha256(f"{file_digest(path)} {of_origin}".encode()).hexdigest()
    place = cache_folder("models") / digest[:32]
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(f"{place.name}.lock"), NEVER):
        if not place.is_dir():
            draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            try:
                with tempfile.TemporaryDirectory() as bare:
                    for file in files:  # diffusers would read weights beside them
                        (target := Path(bare) / file.relative_to(origin)).parent.mkdir(exist_ok=True)
                        shutil.copyfile(file, target)
                    pipeline = _convert(path, origin if base else Path(bare), dtype, alone=base is None)
                pipeline.save_pretrained(draft, safe_serialization=True)
                write_json(draft / CONVERTED, {"digest": digest})
                for file in draft.rglob("*"):
                    if file.is_file():
                        sync(file)
                draft.rename(place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return place


def _dtype(path: Path) -> torch.dtype:
    """That of most weights."""
    try:
        check_header(path)
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError) as error:
        raise AimfairError(f"generate.model: {path}: not a .safetensors file: {one_line(error)}") from error
    kinds = Counter(tensor["dtype"] for name, tensor in header.items() if name != "__metadata__")
    kind = kinds.most_common(1)[0][0] if kinds else "none"
    if kind not in _DTYPES:
        raise AimfairError(f"generate.model: {path}: found weights in {kind}, expected {', '.join(_DTYPES)}")
    return _DTYPES[kind]


def _recognised(path: Path, allow_download: bool) -> Path:
    """The configuration of the model that diffusers takes the file for."""
    diffusers = diffusers_quietly()
    tools = diffusers.loaders.single_file_utils
    try:
        name = tools.fetch_diffusers_config(tools.load_single_file_checkpoint(str(path), local_files_only=True))
    except Exception as error:
        raise AimfairError(
            f"generate.model: {path}: not recognised ({one_line(error)}); name the model that it is a version of with"
            " --generate.base, a folder or a hub id"
        ) from error
    return from_hub("generate.base", name["pretrained_model_name_or_path"], allow_download, _CONFIGURATION)


def _convert(path: Path, origin: Path, dtype: torch.dtype, *, alone: bool) -> Any:
    """The pipeline with the weights of the file.

    Args:
        alone: whether ``origin`` has no weights.
    """
    family = known_family(origin)
    diffusers = diffusers_quietly()
    kind = getattr(diffusers, family.pipeline)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    reasons = []
    # The configuration is always a folder: with a hub id diffusers would use the network.
    ways: tuple[Callable[[], Any], ...] = (
        lambda: kind.from_single_file(str(path), config=str(origin), **options, **family.without),
        lambda: kind.from_pretrained(
            str(origin),
            use_safetensors=True,
            **{family.denoiser: _denoiser(diffusers, path, origin, family.denoiser, options)},
            **options,
            **family.without,
        ),
    )
    for load in ways[:1] if alone else ways:
        try:
            pipeline = load()
        except Exception as error:  # each loader of diffusers raises its own
            reasons.append(one_line(error))
            continue
        for part, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                refuse_broken_weights(f"{path}: {part}", module)
        return pipeline
    if alone:
        raise AimfairError(
            f"generate.model: {path}: not a whole {family.pipeline}: {reasons[0]}; if it is the {family.denoiser} of"
            " one, or lacks other parts, name the model that it is a version of with --generate.base"
        )
    raise AimfairError(
        f"generate.model: {path}: as a whole {family.pipeline}: {reasons[0]}; as the {family.denoiser} of one, with"
        f" the rest in {origin}: {reasons[1]}; expected either, with generate.base the model that it is a version of"
    )


def _denoiser(diffusers: Any, path: Path, origin: Path, part: str, options: dict[str, Any]) -> Any:
    kind = getattr(diffusers, index_of(origin)[part][1])
    return kind.from_single_file(str(path), config=str(origin), subfolder=part, **options)
