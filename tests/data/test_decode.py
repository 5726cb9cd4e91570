import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from aimfair.data.decode import ImageError, content_digest, decode, fit, read_rgb
from tests.data.conftest import save_image

CAP = 1_000_000


def test_centre_crop_keeps_proportions(tmp_path: Path) -> None:
    """A wide image gives the middle of its height's square, as resizing first and cropping then does."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 100, 3), dtype=np.uint8))
    whole = image.resize((50, 20), Image.Resampling.LANCZOS).crop((15, 0, 35, 20))
    np.testing.assert_array_equal(fit(image, 20), np.asarray(whole))
    assert np.array_equal(fit(image.crop((0, 0, 20, 20)), 20), np.asarray(image)[:20, :20])


def test_stretching_keeps_the_whole_image() -> None:
    """By the mean of the pixels beneath a triangle, as bilinear resizing of Pillow's images is, at both scales."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 50, 3), dtype=np.uint8)
    found = fit(Image.fromarray(pixels), 25, "stretch").astype(int)
    expected = np.einsum("yr,rcb,xc->yxb", weights(20, 25), pixels.astype(float), weights(50, 25))
    assert np.abs(found - expected).max() <= 1.1
    square = Image.fromarray(pixels[:, :20])
    np.testing.assert_array_equal(fit(square, 20, "stretch"), pixels[:, :20])


def weights(length: int, size: int) -> np.ndarray:
    """float64 [size, length]: a triangle as wide as two pixels, of the coarser grid, around each pixel's centre."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length)[None, :] + 0.5 - centres[:, None])
    triangle = np.clip(1 - distance / max(scale, 1.0), 0, None)
    return triangle / triangle.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (1000, 1), (1, 1_000_000)])
def test_strips_are_decoded(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full((*shape, 3), 77, np.uint8)).save(tmp_path / "strip.png")
    for how in ("crop", "stretch"):
        pixels = decode(tmp_path / "strip.png", 32, CAP, how)
        assert pixels.shape == (32, 32, 3)
        assert (pixels == 77).all()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 9), (9, 9, 9)),
        (Image.new("LA", (4, 4), (0, 51)), (204, 204, 204)),
        (Image.new("RGB", (4, 4), (200, 9, 8)).quantize(2), (200, 9, 8)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.fromarray(np.full((4, 4), 0xABCD, np.uint16)), (0xAB, 0xAB, 0xAB)),
    ],
    ids=["1", "L", "LA", "P", "RGBA", "I;16"],
)
def test_modes_of_png(tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]) -> None:
    image.save(tmp_path / "image.png")
    assert read_rgb(tmp_path / "image.png", CAP).getcolors() == [(16, expected)]


def test_one_transparent_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (4, 5, 6))
    image.save(tmp_path / "image.png", transparency=(1, 2, 3))
    assert np.asarray(read_rgb(tmp_path / "image.png", CAP)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_cmyk_and_webp(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "image.jpg")
    cyan = np.asarray(read_rgb(tmp_path / "image.jpg", CAP)).astype(int)
    assert np.abs(cyan - [0, 255, 255]).max() < 5
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "image.webp", lossless=True)
    assert read_rgb(tmp_path / "image.webp", CAP).getcolors() == [(64, (255, 255, 255))]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_rgb(path, CAP)), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_as_stored(tmp_path: Path) -> None:
    save_image(tmp_path / "image.png", 0)
    with Image.open(tmp_path / "image.png") as image:
        image.save(tmp_path / "image.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\3\0")
    assert read_rgb(tmp_path / "image.jpg", CAP).size == (12, 10)


def test_the_format_is_told_by_content(tmp_path: Path) -> None:
    save_image(tmp_path / "image.png", 0)
    os.rename(tmp_path / "image.png", tmp_path / "image.jpg")
    assert read_rgb(tmp_path / "image.jpg", CAP).size == (12, 10)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims all these pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg(tmp_path: Path) -> bytes:
    save_image(tmp_path / "whole.jpg", 0, (64, 64))
    return (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "no such file"),
        ("folder.png", "not a file"),
        ("pipe.png", "not a file"),
        ("empty.jpg", "empty file"),
        ("page.jpg", "not JPEG, PNG or WebP, it begins with b'<!DOCTYPE"),
        ("image.bmp", "not JPEG, PNG or WebP"),
        ("bomb.png", r"30000 x 30000 pixels, more than 1,000,000 \(data.max_pixels\)"),
        ("long.png", "bytes, too many for"),
        ("truncated.jpg", "cannot be decoded: .*truncated"),
        ("truncated.png", "cannot be decoded"),
        ("truncated.webp", "cannot be decoded"),
        ("header.jpg", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    save_image(tmp_path / "image.bmp", 0)
    (tmp_path / "bomb.png").write_bytes(bomb(30_000, 30_000))
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(100 * CAP)
    whole = jpeg(tmp_path)
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.jpg").write_bytes(whole[:20])
    for suffix in ("png", "webp"):
        path = tmp_path / f"truncated.{suffix}"
        save_image(path, 0, (64, 64))
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=reason) as caught:
        decode(tmp_path / name, 32, CAP)
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["jpg", "png", "webp"]), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_gives_pixels_or_an_image_error(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"image.{suffix}"
    save_image(path, 3, (16, 16))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        assert decode(path, 8, CAP).shape == (8, 8, 3)


def test_content_digest_sees_pixels_and_shape_alone(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 0)
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "b.png", compress_level=0)
        image.save(tmp_path / "c.webp", lossless=True)
        digests = {content_digest(read_rgb(tmp_path / name, CAP)) for name in ("a.png", "b.png", "c.webp")}
        assert len(digests) == 1
        other = image.copy()
    other.putpixel((3, 3), (1, 2, 3))
    assert content_digest(other) not in digests
    flat = Image.new("RGB", (2, 8))
    assert content_digest(flat) != content_digest(flat.transpose(Image.Transpose.ROTATE_90))
