"""Text-to-image pipelines of diffusers that are of no known family: in eager only, called as their users do."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines.engine import full_precision
from aimfair.diffusion.families.registry import index_of, is_known, unknown_family
from aimfair.diffusion.load import diffusers_quietly, open_pipeline
from aimfair.diffusion.sampler import Samples
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.diffusion.text_to_image import Diffusion

_NEED_MORE = {"image", "control_image", "mask_image", "video", "num_frames", "audio_length_in_s", "audio_end_in_s"}
"""Arguments of pipelines that make something else, or from something else, than an image from a prompt."""


class AnyPipeline:
    """A :class:`Sampler` that knows nothing of the model but what every pipeline has: prompt, steps, size, generator.

    Images are made one by one, so that none depends on another; only NaN is seen as not finite.

    Args:
        folder, settings, device: as for :class:`Diffusion`.

    Raises:
        AimfairError: the model is damaged, does not make images from prompts alone, or the settings need a known
            family.
    """

    def __init__(self, folder: Path, settings: TextToImageSettings, device: torch.device, log: Log = NOWHERE):
        name = index_of(folder)["_class_name"]
        diffusers = diffusers_quietly()
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not _makes_images(diffusers, kind):
            raise unknown_family(folder)
        self._settings = settings
        self._refuse(name)
        self._pipeline = _load(kind, folder, settings).to(device)
        self._takes = inspect.signature(self._pipeline.__call__).parameters
        if settings.negative_prompt and "negative_prompt" not in self._takes:
            raise AimfairError(
                f"generate.negative_prompt: found {settings.negative_prompt!r}, expected none: a {name} takes none"
            )
        log.tell(
            f"{name}: of no known family, so images are made one by one in eager, and prompts that are too long are cut"
        )

    @property
    def seconds(self) -> Mapping[str, float]:
        """As :attr:`Sampler.seconds`: nothing is measured."""
        return {}

    @property
    def small_decoders(self) -> bool:
        """Of these pipelines it is not known how they decode."""
        return False

    @torch.inference_mode()
    @full_precision()
    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """As :meth:`Diffusion.sample`."""
        images = torch.stack([self._sample(text, seed) for text, seed in zip(texts, seeds, strict=True)])
        finite = images.isfinite().flatten(1).all(1)
        pixels = images.nan_to_num(0).mul(255).round().clamp(0, 255).to(torch.uint8)
        return Samples(pixels.permute(0, 2, 3, 1).contiguous().numpy(), finite.numpy())

    def refuse_unreadable(self, texts: Iterable[str]) -> None:
        """Of these pipelines it is not known which prompts they can read."""

    def _sample(self, text: str, seed: int) -> torch.Tensor:
        """[3, H, W], 0 to 1, on the CPU."""
        settings, size = self._settings, self._settings.render_size
        options: dict[str, Any] = {
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "negative_prompt": settings.negative_prompt or None,
            "height": size,
            "width": size,
            "use_resolution_binning": False if size else None,
        }
        taken = {key: value for key, value in options.items() if key in self._takes and value is not None}
        generator = torch.Generator("cpu").manual_seed(seed)
        (image,) = self._pipeline(prompt=text, generator=generator, output_type="pt", **taken).images
        return torch.as_tensor(np.asarray(image.float().cpu()))

    def _refuse(self, name: str) -> None:
        """Refuses settings that need to know the family."""
        settings = self._settings
        wanted = {
            "engine": (settings.engine in ("auto", "eager"), "eager"),
            "scheduler": (settings.scheduler == "as_saved", "as_saved"),
            **dict.fromkeys(settings.shortcuts, (False, "none")),
        }
        for key, (fits, expected) in wanted.items():
            if not fits:
                raise AimfairError(
                    f"generate.{key}: found {getattr(settings, key)}, expected {expected}: a {name} is of no known"
                    " family, and runs as diffusers runs it"
                )


def load_sampler(
    folder: Path,
    settings: TextToImageSettings,
    device: torch.device,
    log: Log = NOWHERE,
    interrupt: Interrupt = NEVER,
    prompts: Sequence[str] = (),
) -> Diffusion | AnyPipeline:
    """The model; raises as :class:`Diffusion` and :class:`AnyPipeline`."""
    if is_known(folder):
        return Diffusion(folder, settings, device, log, interrupt, prompts)
    return AnyPipeline(folder, settings, device, log)


def _makes_images(diffusers: Any, kind: Any) -> bool:
    """Whether a class of diffusers makes an image from a prompt alone."""
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
        return False
    takes = inspect.signature(kind.__call__).parameters
    listed = kind in diffusers.pipelines.auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    return "prompt" in takes and "Control" not in kind.__name__ and (listed or not _NEED_MORE & set(takes))


def _load(kind: Any, folder: Path, settings: TextToImageSettings) -> Any:
    without: dict[str, Any] = {}
    if "safety_checker" in index_of(folder):
        without = {"safety_checker": None, "requires_safety_checker": False}
    return open_pipeline(kind, folder, settings, without)
