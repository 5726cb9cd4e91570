"""Decodes one image file: the same pixels for the same bytes, or a reason for rejecting it."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from aimfair.base.errors import AimfairError
from aimfair.base.os_errors import of_the_machine
from aimfair.base.storage import File, StorageError

Pixels = npt.NDArray[np.uint8]
Fit = Literal["crop", "stretch"]

VERSION = 1
"""Increase this when the decoded pixels change."""

_HEADER_BYTES = 16
_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> the transposition that makes it upright (EXIF 2.32, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(AimfairError):
    """A rejected file; ``reason`` is the message without the file's path."""

    def __init__(self, path: File, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def decode(path: Path, size: int, max_pixels: int, how: Fit = "crop") -> Pixels:
    """The image in ``path`` as the model sees it.

    Args:
        size: pixels along each side.
        max_pixels: files whose header says more are refused before decoding.
        how: as :func:`fit`.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        ImageError: not a complete JPEG, PNG or WebP file, or too many pixels.
    """
    return fit(read_rgb(path, max_pixels), size, how)


def read_rgb(path: Path, max_pixels: int) -> Image.Image:
    """All pixels of ``path``, upright, in RGB.

    The format is detected by content, not by name. Transparency is composited on white; of 16 bits the upper eight are
    kept; CMYK is converted by formula, without a color profile; of an animation the first frame is used.

    Raises:
        ImageError: as :func:`decode`.
        OSError: for a reason that says nothing about the file, such as too many open files.
    """
    with _rejecting(path):
        if not path.is_file():  # opening a pipe would block
            raise ImageError(path, "not a file" if path.exists() else "no such file")
        refuse_size(path, path.stat().st_size, max_pixels)
        with path.open("rb") as file:
            return _read(path, file, max_pixels)


def rgb_of_bytes(path: File, data: bytes, max_pixels: int) -> Image.Image:
    """As :func:`read_rgb`, of the bytes of an image in a larger file; ``path`` names them in errors."""
    with _rejecting(path):
        refuse_size(path, len(data), max_pixels)
        return _read(path, io.BytesIO(data), max_pixels)


def refuse_size(path: File, size: int, max_pixels: int) -> None:
    """Refuses more bytes than an uncompressed image of ``max_pixels`` has.

    Raises:
        ImageError: there are more.
    """
    if size > 8 * max_pixels + 2**20:
        raise ImageError(path, f"{size:,} bytes, too many for {max_pixels:,} pixels")


def _read(path: File, file: IO[bytes], max_pixels: int) -> Image.Image:
    image = open_image(path, file)
    if image.width * image.height > max_pixels:
        raise ImageError(path, f"{image.width} x {image.height} pixels, more than {max_pixels:,} (data.max_pixels)")
    image.load()  # everything, including EXIF data that PNG may store after the pixels
    return _to_rgb(_upright(image))


@contextmanager
def _rejecting(path: File) -> Iterator[None]:
    try:
        yield
    except (ImageError, MemoryError, StorageError):
        raise
    except Exception as error:  # on damaged data Pillow raises OSError, SyntaxError, struct.error, IndexError, ...
        if of_the_machine(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(path, f"cannot be decoded: {reason}") from error


def fit(image: Image.Image, size: int, how: Fit = "crop") -> Pixels:
    """A square of ``size`` pixels along each side.

    Args:
        image: RGB.
        how: ``crop``: the central square, by Lanczos; ``stretch``: the whole image, ignoring its aspect ratio, by
            antialiased bilinear interpolation, as torchvision's ``Resize`` of Pillow images in AIM-Fair.

    Returns:
        uint8 [size, size, 3].
    """
    width, height = image.size
    if width == height == size:
        return np.asarray(image)
    if how == "stretch":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Cropped and resized in one step: resized first, a strip of 1 x 1,000,000 pixels would grow by size^2.
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.asarray(square)


def content_digest(image: Image.Image) -> str:
    """Digest of size and pixels: equal for files that differ only in compression or metadata.

    Args:
        image: RGB.
    """
    digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def dhash(image: Image.Image) -> str:
    """Perceptual hash of 64 bits (Krawetz 2013), as 16 hexadecimal digits: similar images differ in few bits.

    A bit says whether brightness rises from one pixel to the next, in 8 rows of 9.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def open_image(path: File, file: IO[bytes]) -> ImageFile:
    """The image in ``file``, with only its header read; its ``format`` is JPEG, PNG or WEBP.

    Calls the three readers directly: ``Image.open`` accepts many more formats, and applies a process-wide limit on
    pixels.

    Raises:
        ImageError: the content has another format.
        Exception: the header is damaged; Pillow raises any type.
    """
    header = file.read(_HEADER_BYTES)
    file.seek(0)
    if header.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(file)
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(file)
    if header.startswith(b"RIFF") and header[8:12] == b"WEBP":
        return WebPImageFile(file)
    raise ImageError(path, f"not JPEG, PNG or WebP, it begins with {header!r}" if header else "empty file")


def turned(image: Image.Image) -> bool:
    """Whether width and height are exchanged when the image is made upright."""
    return (_orientation(image) or 0) >= 5


def _upright(image: Image.Image) -> Image.Image:
    """Transposed by its EXIF orientation; unchanged if that is missing or damaged, as in viewers."""
    orientation = _orientation(image)
    return image if orientation is None else image.transpose(_UPRIGHT[orientation])


def _orientation(image: Image.Image) -> int | None:
    """A key of ``_UPRIGHT``; None if the image is upright, or its EXIF data cannot be read."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # the pixels are still complete; Pillow raises any type here
        return None
    return orientation if orientation in _UPRIGHT else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow itself reduces 16-bit colors to their upper bytes
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
