"""A perceptual hash of 64 bits: pictures that look alike have hashes that differ in few bits."""

import numpy as np
from PIL import Image


def dhash(image: Image.Image) -> str:
    """Where brightness rises from one pixel to the next in 8 rows of 9 (Krawetz 2013): 16 hexadecimal digits."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()
