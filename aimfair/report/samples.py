"""Pictures for the page: a few of each group, as data URIs."""

import base64
import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.seeds import generator
from aimfair.data.images import ImageSet

PER_GROUP = 6
_LARGEST, _SMALL = 160, 64
"""Pixels along the longer side: twice what is shown, for dense screens; and what is small enough to be kept exact."""

Picture = npt.NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""

Row = TypeVar("Row")


def choose(rows: Sequence[Row], keys: Sequence[str], *purpose: int | str) -> list[Row]:
    """At most ``PER_GROUP`` of the rows, drawn at random; of different keys as long as there are such."""
    order = generator("report", "samples", *purpose).permutation(len(rows))
    seen: set[str] = set()
    first: list[int] = []
    again: list[int] = []
    for i in order:
        (again if keys[i] in seen else first).append(int(i))
        seen.add(keys[i])
    return [rows[i] for i in (first + again)[:PER_GROUP]]


def real(images: ImageSet, y: int, a: int) -> list[Picture]:
    """A few images of the group (y, a)."""
    indices = np.flatnonzero((images.target == y) & (images.protected == a)).tolist()
    chosen = choose(indices, [images.ids[i] for i in indices], "real", y, a)
    return [np.asarray(images.images[i]) for i in chosen]


def data_uri(picture: Picture) -> str:
    """The picture, no larger than it is shown: small ones to the last bit, as PNG, large ones as JPEG."""
    image = Image.fromarray(picture)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    kind, options = ("png", {"optimize": True}) if max(image.size) <= _SMALL else ("jpeg", {"quality": 88})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
