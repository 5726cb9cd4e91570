"""The folder and the fingerprint of a text-to-image model. Imports none of the libraries that run it."""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.libraries import optional
from aimfair.base.settings import is_url
from aimfair.base.storage import local

SHIPPED = {"digits": Path(__file__).parent.parent / "assets" / "digits-diffusion"}
"""Models included in this package."""

COMPONENTS = (
    "scheduler",
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
    "transformer",
    "unet",
    "vae",
)
"""Component folders in diffusers' layout, of which a family has some; without the safety checker."""

_ENDS = ("json", "txt", "model", "jinja", "safetensors")
_READ = ("model_index.json", *(f"{part}/*.{end}" for part in COMPONENTS for end in _ENDS))
_DECODER = ("config.json", "*.safetensors")
_NEVER_READ = ("safety_checker", "feature_extractor", "image_encoder")  # components
_NOT_READ = ("*.fp16.*", "*.fp16-*", "*.non_ema.*")  # other versions of the same weights


CONVERTED = "converted.json"
"""In the folder of a model that was converted: the digest of what it was made from."""

_SINGLE = ".safetensors"
_PICKLED = (".ckpt", ".bin", ".pt", ".pth")


def model_folder(model: str, allow_download: bool, base: str | None = None) -> Path:
    """The folder of a model, in diffusers' layout.

    The network is used only with ``allow_download``, and only for files that are not in the hub's cache.

    Args:
        model: a name of :data:`SHIPPED`, the absolute path of a folder or of a .safetensors file, or a hub id.
        base: of a file; see :func:`aimfair.diffusion.single_file.converted`.

    Raises:
        AimfairError: the model is not there.
    """
    if is_url(model):
        model = str(local(model, "generate.model"))
    if model not in SHIPPED and not Path(model).is_absolute():
        downloaded = from_hub("generate.model", model, allow_download)
        if further := _further(downloaded):
            downloaded = from_hub("generate.model", model, allow_download, (*_READ, *further))
        return downloaded
    folder = SHIPPED.get(model, Path(model))
    if folder.suffix in _PICKLED and not folder.is_dir():
        raise AimfairError(
            f"generate.model: {folder}: found {folder.suffix}, expected {_SINGLE}: pickled weights can run code;"
            " convert them where that does no harm"
        )
    if folder.suffix == _SINGLE and not folder.is_dir():
        from aimfair.diffusion.single_file import converted

        return converted(folder, base, allow_download)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise AimfairError(f"generate.model: {folder}: {found}, expected a folder in diffusers' layout")
    if not (folder / "model_index.json").is_file():
        raise AimfairError(f"generate.model: {folder} has no model_index.json, expected a folder in diffusers' layout")
    return folder


def decoder_folder(decoder: str | None, allow_download: bool) -> Path | None:
    """The folder of ``generate.decoder``; None: the model's own is used.

    Raises:
        AimfairError: there is no decoder.
    """
    if decoder is None:
        return None
    if not Path(decoder).is_absolute():
        return from_hub("generate.decoder", decoder, allow_download, _DECODER)
    if not (Path(decoder) / "config.json").is_file():
        raise AimfairError(
            f"generate.decoder: {decoder}: found no config.json, expected the folder of an AutoencoderTiny as diffusers"
            " saves it"
        )
    return Path(decoder)


def decoder_fingerprint(folder: Path) -> str:
    """As :func:`fingerprint`, of a decoder."""
    return digest_of_files(folder, _DECODER)


def weights_of(component: Path) -> list[Path]:
    """The files in a component's folder from which its weights are read."""
    return [path for path in sorted(component.glob("*.safetensors")) if not _is_other_version(path)]


def _is_other_version(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _NOT_READ)


def fingerprint(folder: Path) -> str:
    """SHA-256 of the names and contents of the files that are read: equal for identical models."""
    if (made := folder / CONVERTED).is_file():  # files differ with the version that converted
        return str(json.loads(made.read_text(encoding="utf-8"))["digest"])
    return digest_of_files(folder, (*_READ, *_further(folder)))


def configuration(folder: Path) -> tuple[str, list[Path]]:
    """:func:`fingerprint` of a model without its weights, and the files that it is of.

    It does not change when weights are downloaded into the folder.
    """
    patterns = [pattern for pattern in (*_READ, *_further(folder)) if not pattern.endswith(".safetensors")]
    return digest_of_files(folder, patterns), _files_of(folder, patterns)


def _further(folder: Path) -> tuple[str, ...]:
    """Patterns of the components that families do not have, from the index of the model."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    listed = [name for name, kind in index.items() if isinstance(kind, list) and any(kind)]
    return tuple(f"{name}/*.{end}" for name in listed if name not in (*COMPONENTS, *_NEVER_READ) for end in _ENDS)


def digest_of_files(folder: Path, patterns: Sequence[str]) -> str:
    """SHA-256 of the names and contents of the files that match, without duplicate versions of the weights."""
    digest = hashlib.sha256()
    for path in _files_of(folder, patterns):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return [path for path in found if not _is_other_version(path)]


def from_hub(key: str, model: str, allow_download: bool, patterns: Sequence[str] = _READ) -> Path:
    """The local folder of a model on the hub, with the files that match the patterns.

    Args:
        key: the setting that names it, for error messages.

    Raises:
        AimfairError: it is not in the cache and may not be downloaded, or the download fails.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model):
        names = f"{' or '.join(map(repr, SHIPPED))}, " if key == "generate.model" else ""
        raise AimfairError(
            f"{key}: found {model!r}, expected {names}a folder (beginning with /, ./, ../ or ~/) or a hub id such as"
            " 'owner/name'"
        )
    with diffusion_libraries():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    try:
        return Path(
            snapshot_download(
                model,
                local_files_only=not allow_download,
                allow_patterns=list(patterns),
                ignore_patterns=list(_NOT_READ),
            )
        )
    except LocalEntryNotFoundError as error:
        if not allow_download:
            raise AimfairError(
                f"{key}: {model!r} is not in the hub's cache, {constants.HF_HUB_CACHE}; give a folder, or download it"
                " with --generate.allow_download true"
            ) from error
        cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "check the network"
        raise AimfairError(f"{key}: {model!r} cannot be downloaded; {cause}") from error
    except Exception as error:  # the hub's client raises errors of its own, of its HTTP client and of the system
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AimfairError(f"{key}: {model!r} cannot be downloaded: {reason}") from error


def diffusion_libraries() -> AbstractContextManager[None]:
    """Around the imports of the libraries that run text-to-image models and filters; see :func:`optional`."""
    return optional("generating images", "accelerate diffusers transformers")
