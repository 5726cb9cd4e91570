"""Images from images and text: SDEdit with a latent diffusion model.

An image gets noise up to the point that the strength says, and is denoised from there on for the prompt: what is left
of it (layout, background, pose) stays, what the prompt says changes. Meng et al., SDEdit: Guided Image Synthesis and
Editing with Stochastic Differential Equations, ICLR 2022 (arXiv 2108.01073).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.clock import COPIES, SCHEDULER
from aimfair.diffusion.engines.engine import full_precision
from aimfair.diffusion.families.registry import index_of, is_known
from aimfair.diffusion.load import image_to_image
from aimfair.diffusion.sampler import Samples
from aimfair.diffusion.schedulers import scheduler_options
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.diffusion.text_to_image import Diffusion


class ImageToImage(Diffusion):
    """A text-to-image model that starts from images, in engine eager.

    An image depends on its source, prompt and seed; the others of a batch change rounding only, as of
    :class:`Diffusion`. The seed decides the noise and, where an encoder has one, the sample of its latents.

    Args:
        strength: share of the steps that are done, in (0, 1]; 1 leaves next to nothing of the image.
        image: returns the image of a name, uint8 [H, W, 3], square.
        others: as of :class:`Diffusion`.

    Raises:
        AimfairError: as of :class:`Diffusion`, or the family is unknown or has no such pipeline.
    """

    def __init__(
        self,
        folder: Path,
        settings: TextToImageSettings,
        device: torch.device,
        strength: float,
        image: Callable[[str], npt.NDArray[np.uint8]],
        log: Log = NOWHERE,
        interrupt: Interrupt = NEVER,
    ):
        if not is_known(folder):
            raise AimfairError(
                f"generate.pairs.strength: a {index_of(folder)['_class_name']} is of no known family, so its images"
                " cannot start from others; leave strength out, or use another generate.model"
            )
        super().__init__(folder, settings, device, log, interrupt)
        self._strength, self._image = strength, image
        self._editing = image_to_image(self._pipeline)
        takes_size = "height" in inspect.signature(self._editing.__call__).parameters  # others take the image's
        self._square = {"height": self.size, "width": self.size} if takes_size else {}

    @property
    def small_decoders(self) -> bool:
        """None: images are edited without shortcuts."""
        return False

    @torch.inference_mode()
    @full_precision()
    def edit(self, texts: Sequence[str], seeds: Sequence[int], sources: Sequence[str]) -> Samples:
        """One image for each prompt, seed and source.

        Raises:
            AimfairError: as of :meth:`Diffusion.sample`.
        """
        return self._in_pieces(
            len(texts), lambda part: self._sample(texts[part], partial(self._change, seeds[part], sources[part]))
        )

    def _change(self, seeds: Sequence[int], sources: Sequence[str], embeddings: Mapping[str, Any]) -> Tensor:
        measure = self._clock.measure
        with measure(COPIES):
            images = np.stack([self._resized(self._image(source)) for source in sources])
            start = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device, torch.float32) / 255
        with measure(SCHEDULER):  # the encoder of images, too: a fraction of a step
            latents: Tensor = self._editing(
                **embeddings,
                image=start,
                strength=self._strength,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                num_inference_steps=self._settings.steps,
                **self._family.options(self._settings.steps, self._settings.guidance_scale),
                **scheduler_options(self._settings.scheduler),
                **self._square,
                output_type="latent",
            ).images
        return latents

    def _resized(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """At the size of the model."""
        if image.shape[:2] == (self.size, self.size):
            return image
        return np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC))
