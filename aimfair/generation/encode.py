"""Pixels to files without loss, so that others see the same pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.files import replace_file
from aimfair.generation.manifest import Format

# What is quickest without being larger than need be: see docs/generation.md for what each costs.
_OPTIONS: dict[Format, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 1},
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}


def write_image(path: Path, pixels: npt.NDArray[np.uint8], image_format: Format) -> None:
    """Replaces ``path``; uint8 [H, W, 3] in, the same bytes for the same pixels and version of Pillow.

    Raises:
        OSError: it cannot be written.
    """
    with replace_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, **_OPTIONS[image_format])
