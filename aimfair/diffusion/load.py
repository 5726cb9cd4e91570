"""Loads a text-to-image model as a pipeline of diffusers. The only importer of diffusers."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aimfair.base.checked_weights import load_model, refuse_broken_weights
from aimfair.base.errors import AimfairError, one_line
from aimfair.diffusion.families.family import Family, Pipeline
from aimfair.diffusion.families.registry import absent
from aimfair.diffusion.lora import fuse_loras
from aimfair.diffusion.model import decoder_folder, diffusion_libraries, weights_of
from aimfair.diffusion.schedulers import require_steps, scheduler_of
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.selective.storage import check_header


def load_pipeline(folder: Path, family: Family, settings: TextToImageSettings, device: torch.device) -> Pipeline:
    """The pipeline of a model, on the device, with the scheduler of the settings.

    Raises:
        AimfairError: the model is damaged, or does not support the settings.
    """
    if family.own_scheduler and settings.scheduler != "as_saved":
        raise AimfairError(
            f"generate.scheduler: found {settings.scheduler!r}, expected as_saved: a {family.pipeline} works only"
            " with the scheduler that it was trained for, one of flow matching or of consistency models"
        )
    if settings.negative_prompt and not family.steers_away:
        raise AimfairError(
            f"generate.negative_prompt: found {settings.negative_prompt!r}, expected none: a {family.pipeline} has"
            " no negative prompts"
        )
    if settings.decoder is not None and not family.small_decoders:
        raise AimfairError(f"generate.decoder: found {settings.decoder}, expected none for a {family.pipeline}")
    diffusers = diffusers_quietly()
    pipeline = open_pipeline(
        getattr(diffusers, family.pipeline), folder, settings, {**family.without, **absent(folder, family)}
    )
    pipeline.scheduler = scheduler_of(diffusers, settings.scheduler, pipeline.scheduler)
    continuous = family.own_scheduler and "original_inference_steps" not in pipeline.scheduler.config
    if not continuous:  # as times of flow matching are
        require_steps(pipeline.scheduler, settings.steps)
    scheduler = type(pipeline.scheduler).__name__
    if settings.steps == 1 and scheduler in family.no_single_step:
        raise AimfairError(
            f"generate.steps: found 1, expected 2 or more: a {family.pipeline} makes no image in a single step with the"
            f" {scheduler}; models for one step have another, or use --generate.scheduler lcm"
        )
    if (small := decoder_folder(settings.decoder, settings.allow_download)) is not None:
        pipeline.vae = _small_decoder(small, pipeline, getattr(torch, settings.dtype))
    if settings.channels_last:
        for part in (getattr(pipeline, family.denoiser), pipeline.vae):
            for module in part.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return pipeline.to(device)


def open_pipeline(kind: Any, folder: Path, settings: TextToImageSettings, components: Mapping[str, Any]) -> Pipeline:
    """A pipeline of a class of diffusers, on the CPU, with the adapters of the settings.

    Args:
        components: in place of those in the folder.

    Raises:
        AimfairError: the model is damaged.
    """
    refuse_repeated_tensors(folder, kind.__name__)
    try:
        pipeline = kind.from_pretrained(
            str(folder),
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,  # pickled weights can run code
            local_files_only=True,
            **components,
        )
    except Exception as error:  # a user's folder can have any fault, and each component raises its own errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AimfairError(f"{folder}: not a usable {kind.__name__}: {reason}") from error
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            refuse_broken_weights(str(folder / part), module)
    pipeline.set_progress_bar_config(disable=True)
    fuse_loras(pipeline, settings)
    return pipeline


def taylor_seer(**options: Any) -> Any:
    """diffusers' configuration of the step cache."""
    return diffusers_quietly().TaylorSeerCacheConfig(**options)


def _small_decoder(folder: Path, pipeline: Pipeline, dtype: torch.dtype) -> Any:
    """An AutoencoderTiny for the latents of the pipeline.

    Raises:
        AimfairError: it cannot be loaded, or is for other latents.
    """
    key, own = "generate.decoder", pipeline.vae.config
    for path in weights_of(folder):
        try:
            check_header(path)
        except ValueError as error:
            raise AimfairError(f"{key}: {path}: not a usable AutoencoderTiny: {error}") from error
    small = load_model(key, folder, diffusers_quietly().AutoencoderTiny, dtype=dtype)
    channels, factor = small.config.latent_channels, 2 ** (len(small.config.num_decoder_blocks) - 1)
    if (channels, factor) != (own.latent_channels, pipeline.vae_scale_factor):
        raise AimfairError(
            f"{key}: {folder} decodes {channels} channels to {factor} x {factor} pixels, expected {own.latent_channels}"
            f" and {pipeline.vae_scale_factor} x {pipeline.vae_scale_factor} for generate.model; use the decoder made"
            " for its family"
        )
    return small.eval()


def image_to_image(pipeline: Pipeline) -> Pipeline:
    """The pipeline of diffusers that starts from images, with the same modules and scheduler.

    Raises:
        AimfairError: there is none for this kind of model.
    """
    try:
        edited = diffusers_quietly().AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError as error:
        raise AimfairError(
            f"generate.pairs.strength: a {type(pipeline).__name__} cannot start from images ({one_line(error)}); leave"
            " strength out, or use another generate.model"
        ) from error
    edited.set_progress_bar_config(disable=True)
    return edited


def diffusers_quietly() -> Any:
    """The library, without its progress bars and messages."""
    with diffusion_libraries():
        import diffusers
        import transformers
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)  # what is an error to them is raised, too
        library.utils.logging.disable_progress_bar()
    return diffusers


def refuse_repeated_tensors(folder: Path, name: str) -> None:
    """Refuses a model, of the pipeline class ``name``, that the format's reader would read without an error.

    Raises:
        AimfairError: two tensors have the same name, of which the reader keeps the last, or a header is damaged.
    """
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            check_header(path)
        except ValueError as error:
            raise AimfairError(f"{path}: not a usable {name}: {error}") from error
