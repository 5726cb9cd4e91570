"""Low-rank adaptations (LoRA) of a text-to-image model: found, fused into its weights, and named in digests."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.files import file_digest
from aimfair.base.libraries import optional
from aimfair.diffusion.model import from_hub
from aimfair.diffusion.settings import LoraSettings, TextToImageSettings
from aimfair.selective.storage import check_header

_NAME = "pytorch_lora_weights.safetensors"  # of the file that diffusers writes


def lora_facts(settings: TextToImageSettings) -> list[dict[str, Any]]:
    """Digest and scale of each adaptation, in JSON types, for the provenance of images and the facts of engines.

    Raises:
        AimfairError: a file is not there.
    """
    return [
        {"weights": file_digest(path), "scale": lora.scale}
        for lora, path in zip(settings.loras, lora_files(settings), strict=True)
    ]


def lora_files(settings: TextToImageSettings) -> list[Path]:
    """The file of each adaptation; raises as :func:`lora_facts`."""
    return [
        _file(f"generate.loras.{number}", lora, settings.allow_download) for number, lora in enumerate(settings.loras)
    ]


def _file(key: str, lora: LoraSettings, allow_download: bool) -> Path:
    place = Path(lora.weights)
    if not place.is_absolute():
        name = lora.file or _NAME
        path = from_hub(f"{key}.weights", lora.weights, allow_download, (name,)) / name
        if not path.is_file():
            raise AimfairError(
                f"{key}: {lora.weights} has no {name} in the hub's cache; name its file with {key}.file, or download"
                " it with --generate.allow_download true"
            )
    elif place.is_dir():
        found = sorted(place.glob(lora.file or "*.safetensors"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise AimfairError(
                f"{key}: {place}: found {names}, expected one {lora.file or '.safetensors file'}; name it with"
                f" {key}.file"
            )
        (path,) = found
    elif not place.is_file():
        raise AimfairError(f"{key}.weights: {place}: no such file or folder, expected a .safetensors file")
    else:
        path = place
    if path.suffix != ".safetensors":
        raise AimfairError(
            f"{key}: {path}: found {path.suffix or 'no suffix'}, expected .safetensors: pickled weights can run code"
        )
    return path


def fuse_loras(pipeline: Any, settings: TextToImageSettings) -> None:
    """Adds the adaptations to the weights of the pipeline, on the CPU.

    Raises:
        AimfairError: a file is not there or damaged, or is not for this model; or peft is missing.
    """
    if not settings.loras:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise AimfairError(f"generate.loras: a {type(pipeline).__name__} takes none")
    with optional("generate.loras", "peft"):
        import peft  # noqa: F401  diffusers uses it
    takers = [part for part in pipeline._lora_loadable_modules if getattr(pipeline, part, None) is not None]
    others = pipeline.components.keys() - set(takers)
    for number, (lora, path) in enumerate(zip(settings.loras, lora_files(settings), strict=True)):
        name = f"lora{number}"
        try:
            check_header(path)
            if lost := sorted(others & _components_in(path)):
                raise ValueError(f"it has weights for {', '.join(lost)}, expected only for {', '.join(takers)}")
            with _complaints() as complaints:
                pipeline.load_lora_weights(
                    str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True
                )
        except Exception as error:  # each loader of diffusers raises its own
            raise AimfairError(
                f"generate.loras.{number}: {path}: not usable with a {type(pipeline).__name__}: {one_line(error)}"
            ) from error
        if not _adds(pipeline, name) or any("unexpected keys" in complaint for complaint in complaints):
            raise AimfairError(
                f"generate.loras.{number}: {path}: has weights for modules that this {type(pipeline).__name__} does not"
                " have, or none for those that it has; it was made for another model"
            )
        # By default diffusers fuses only the denoiser of most pipelines, and then drops the adapters of text encoders.
        pipeline.fuse_lora(components=takers, lora_scale=lora.scale, adapter_names=[name])
        pipeline.unload_lora_weights()


def _components_in(path: Path) -> set[str]:
    """The components of a pipeline that a file in diffusers' layout adapts: the first word of each name."""
    with safe_open(path, "pt") as file:
        return {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118  it is no dictionary


class _Kept(logging.Handler):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What diffusers warns of: weights that it does not use are no error to it."""
    logger, kept = logging.getLogger("diffusers"), _Kept()
    level, handlers = logger.level, logger.handlers
    logger.setLevel(logging.WARNING)
    logger.handlers = [kept]
    try:
        yield kept.messages
    finally:
        logger.setLevel(level)
        logger.handlers = handlers


def _adds(pipeline: Any, name: str) -> bool:
    """Whether an adaptation changes any module."""
    modules = [module for module in pipeline.components.values() if hasattr(module, "named_parameters")]
    ups = [
        weights
        for module in modules
        for key, weights in module.named_parameters()
        if f"lora_B.{name}." in key or key.endswith(f"lora_embedding_B.{name}")
    ]
    return any(bool(weights.any()) for weights in ups)
