"""Images from texts with a latent diffusion model of Stable Diffusion's family. The only importer of diffusers."""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimfair.config import GenerateSettings
from aimfair.errors import AimfairError
from aimfair.generation.engines.choose import load_engine
from aimfair.generation.engines.eager import Eager
from aimfair.generation.engines.interface import Engine, Source
from aimfair.generation.families import stable_diffusion
from aimfair.generation.model import COMPONENTS, missing_libraries
from aimfair.generation.sampler import Samples
from aimfair.memory import MicroBatch, pieces
from aimfair.run.interrupt import NEVER, Interrupt
from aimfair.run.log import NOWHERE, Log
from aimfair.selective.storage import refuse_repeated_keys

Pipeline = Any
"""A diffusers.StableDiffusionPipeline; diffusers has no types."""

_PIPELINE = "StableDiffusionPipeline"
_CACHED_PROMPTS = 1024  # 160 MB for Stable Diffusion 2.1 in half precision
_SLICED_FROM = 256  # pixels: from here on one image keeps the decoder busy, and a batch would only take memory


class Diffusion:
    """A model that is ready to sample.

    An image depends on its text and its seed: noise comes from a generator of its own, on the CPU, and the text is
    embedded by itself. The other images of a batch change the last bits of its arithmetic and, at most, one grey level.

    Args:
        folder: a model in diffusers' layout.
        settings: engine, scheduler, steps, guidance, dtype, size; ``batch_size`` is halved whenever memory runs out.
        device: where the model runs.
        log, interrupt: for the making of an engine.

    Raises:
        AimfairError: the model is damaged, of another family, cannot make images of ``settings.render_size``, or
            cannot run in ``settings.engine``.
        Interrupted: while an engine was made.
    """

    def __init__(
        self,
        folder: Path,
        settings: GenerateSettings,
        device: torch.device,
        log: Log = NOWHERE,
        interrupt: Interrupt = NEVER,
    ):
        self._settings = settings
        self._device = device
        self._pipeline = _load(folder, settings, device)
        self._guided = settings.guidance_scale > 1  # below, the pipeline leaves guidance out
        self._fitting = MicroBatch(settings.batch_size)
        source = _source(folder, self._pipeline, settings, device)
        self._latents = _latents_of(self._pipeline, settings.render_size)
        self.size: int = self._latents[1] * self._pipeline.vae_scale_factor
        """Pixels along each side of an image."""
        self._engine = load_engine(settings.engine, source, log, interrupt)
        if not isinstance(self._engine, Eager):
            self._pipeline.unet = _Denoiser(self._pipeline.unet, self._engine)
        self._embed = lru_cache(_CACHED_PROMPTS)(self._embed_text)

    @torch.inference_mode()
    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """One image for each text and seed, in [0, 2^63).

        Raises:
            AimfairError: a text has words that the model cannot read or is too long for it, or one image is too much
                for the memory.
        """
        return self._fitting.attempt(
            lambda size: _join([self._sample(texts[part], seeds[part]) for part in pieces(len(texts), size)])
        )

    def _sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        prompts = torch.cat([self._embed(text) for text in texts])
        without = self._embed(self._settings.negative_prompt).expand_as(prompts) if self._guided else None
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self._latents, generator=generator) for generator in generators])
        latents: Tensor = self._pipeline(
            prompt_embeds=prompts,
            negative_prompt_embeds=without,
            latents=noise.to(self._device, self._pipeline.unet.dtype),
            generator=generators,  # schedulers that add noise at every step draw it here
            num_inference_steps=self._settings.steps,
            guidance_scale=self._settings.guidance_scale,
            height=self.size,
            width=self.size,
            output_type="latent",  # the pipeline's own decoding hides values that are not finite
        ).images
        at_once = 1 if self.size >= _SLICED_FROM else len(latents)
        decoded = [self._engine.run("decoder", (part,))[0] for part in torch.split(latents, at_once)]
        images = torch.cat(decoded).float()
        finite = images.isfinite().flatten(1).all(1)
        pixels = images.nan_to_num(-1).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)  # -1 is black, 1 white
        return Samples(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy(), finite.cpu().numpy())

    def _embed_text(self, text: str) -> Tensor:
        """[1, L, D]. One text at a time: in a batch its last bits would depend on the others."""
        self._refuse_unreadable(text)
        embedding: Tensor = self._pipeline.encode_prompt(text, self._device, 1, False)[0]
        return embedding

    def _refuse_unreadable(self, text: str) -> None:
        """The tokenizer itself would cut the text, or put a mark in place of an unknown word, without an error."""
        tokenizer = self._pipeline.tokenizer
        tokens = tokenizer.tokenize(text)
        if len(tokens) > (most := tokenizer.model_max_length - 2):  # beside the marks of beginning and end
            raise AimfairError(
                f"prompt {text!r} has {len(tokens)} tokens, the text encoder of generate.model takes {most}; shorten "
                "prompts.template or lower prompts.contexts_per_prompt"
            )
        unknown = [word for word in text.split() if tokenizer.unk_token in tokenizer.tokenize(word)]
        if unknown:
            raise AimfairError(
                f"prompt {text!r}: generate.model does not know the words {', '.join(map(repr, unknown))}; use others"
            )


class _Denoiser(torch.nn.Module):
    """What the pipeline calls in the place of its UNet, whose weights it does not keep."""

    def __init__(self, unet: Any, engine: Engine):
        super().__init__()
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self._engine = engine

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> tuple[Tensor]:
        if unknown := [name for name, value in others.items() if name != "return_dict" and value is not None]:
            raise AimfairError(f"generate.model needs {', '.join(unknown)}, which only --generate.engine eager takes")
        timesteps = timestep.to(self.device, torch.float32).expand(len(sample))
        (predicted,) = self._engine.run("denoiser", (sample, timesteps, encoder_hidden_states))
        return (predicted,)


def engine_and_source(
    folder: Path, settings: GenerateSettings, device: torch.device, log: Log = NOWHERE, interrupt: Interrupt = NEVER
) -> tuple[Engine, Source]:
    """The engine of a model, made if need be, and the model; raises as :class:`Diffusion`."""
    source = _source(folder, _load(folder, settings, device), settings, device)
    return load_engine(settings.engine, source, log, interrupt), source


def _source(folder: Path, pipeline: Pipeline, settings: GenerateSettings, device: torch.device) -> Source:
    return Source(
        folder=folder,
        parts=stable_diffusion.parts(pipeline, _latents_of(pipeline, settings.render_size)),
        dtype=pipeline.unet.dtype,
        device=device,
    )


def _latents_of(pipeline: Pipeline, render_size: int | None) -> tuple[int, int, int]:
    """Shape [C, h, w] of one image's latents."""
    unet, factor = pipeline.unet.config, pipeline.vae_scale_factor
    if not isinstance(unet.sample_size, int):
        raise AimfairError(f"generate.model: makes images of {unet.sample_size} latents, expected squares")
    size = render_size or unet.sample_size * factor
    multiple = math.lcm(8, factor * 2 ** (len(unet.block_out_channels) - 1))
    if size % multiple:
        raise AimfairError(
            f"generate.render_size: found {size}, expected a multiple of {multiple} for generate.model (its own is "
            f"{unet.sample_size * factor})"
        )
    return unet.in_channels, size // factor, size // factor


def _load(folder: Path, settings: GenerateSettings, device: torch.device) -> Pipeline:
    _refuse_other_families(folder)
    _refuse_repeated_tensors(folder)
    diffusers = _diffusers()
    try:
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            str(folder),
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,  # pickled weights can run code
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # anything can be wrong with a user's folder, and each part of it has its own errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AimfairError(f"{folder}: not a usable {_PIPELINE}: {reason}") from error
    _refuse_broken_weights(folder, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    match settings.scheduler:  # each with the noise schedule of the saved one
        case "ddim":
            pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        case "dpmpp_2m":
            pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
                pipeline.scheduler.config, algorithm_type="dpmsolver++"
            )
        case "unipc":
            pipeline.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline.to(device)


def _diffusers() -> Any:
    """The library, silent: without bars of its own, and without word of things it does not find."""
    try:
        import diffusers
        import transformers
    except ModuleNotFoundError as error:
        raise missing_libraries(error) from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return diffusers


def _refuse_other_families(folder: Path) -> None:
    index = folder / "model_index.json"
    try:
        family = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AimfairError(f"{index}: not the index of a model in diffusers' layout: {error}") from error
    if family != _PIPELINE:
        raise AimfairError(f"{index}: a {family}, expected a {_PIPELINE} (Stable Diffusion 1.x or 2.x)")
    if missing := [part for part in COMPONENTS if not (folder / part).is_dir()]:
        raise AimfairError(f"{folder}: incomplete: {', '.join(missing)} missing; fetch or copy it again")


def _refuse_repeated_tensors(folder: Path) -> None:
    """Of two tensors with one name the format's reader keeps the last without a word."""
    for path in sorted(path for part in COMPONENTS for path in (folder / part).glob("*.safetensors")):
        try:
            refuse_repeated_keys(path)
        except ValueError as error:
            raise AimfairError(f"{path}: not a usable {_PIPELINE}: {error}") from error


def _refuse_broken_weights(folder: Path, pipeline: Pipeline) -> None:
    """NaN loads without a word and gives black images."""
    for part in ("text_encoder", "unet", "vae"):
        for name, weights in getattr(pipeline, part).state_dict().items():
            if not weights.isfinite().all():
                raise AimfairError(f"{folder / part}: {name} holds NaN or infinite weights; fetch or copy it again")


def _join(parts: Sequence[Samples]) -> Samples:
    return Samples(np.concatenate([part.images for part in parts]), np.concatenate([part.finite for part in parts]))
