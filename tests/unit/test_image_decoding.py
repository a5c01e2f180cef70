from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from backend.errors import ImageError
from backend.labelstudio.decoding import ImageLimits, decode

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=10_000, timeout=5.0, attempts=1)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "GIF": {}, "BMP": {}, "TIFF": {}}
LOSSY = ["JPEG", *(["AVIF"] if features.check("avif") else [])]

WHITE = (255, 255, 255)
RED = (255, 0, 0)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(map(int, pixel)) for pixel in np.asarray(image).reshape(-1, 3)]


def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    result = decode(encoded(image, kind, **options), LIMITS)
    assert result.mode == "RGB"
    return result


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_common_raster_formats_are_read(kind: str) -> None:
    result = decoded(Image.new("RGB", (12, 8), RED), kind)
    assert result.size == (12, 8)
    assert np.abs(np.asarray(result).astype(int) - RED).max() <= 3


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("JPEG", (800, 400), (100, 50)),
        ("JPEG", (800, 392), (200, 98)),  # an eighth would be smaller than what is needed
        ("JPEG", (804, 800), (201, 200)),  # no multiple of eight
        ("JPEG", (801, 800), (801, 800)),
        ("JPEG", (80, 60), (80, 60)),
        ("PNG", (800, 400), (800, 400)),
    ],
)
def test_a_large_jpeg_is_decoded_no_finer_than_is_needed(
    kind: str, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    limits = replace(LIMITS, max_pixels=1_000_000)

    assert decode(encoded(Image.new("RGB", size), kind), limits, 50).size == expected


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (4, 2), (0, 0)),
        (2, (4, 2), (3, 0)),
        (3, (4, 2), (3, 1)),
        (4, (4, 2), (0, 1)),
        (5, (2, 4), (0, 0)),
        (6, (2, 4), (1, 0)),
        (7, (2, 4), (1, 3)),
        (8, (2, 4), (0, 3)),
        (99, (4, 2), (0, 0)),
    ],
)
def test_pictures_are_turned_upright(
    kind: str, orientation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(image, kind, exif=exif, **LOSSLESS[kind])
    assert result.size == size
    assert result.getpixel(corner) == RED


def test_a_broken_exif_block_hides_no_pixel() -> None:
    result = decoded(Image.new("RGB", (4, 2), RED), "PNG", exif=b"Exif\0\0nothing")
    assert result.getpixel((0, 0)) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new(mode, (3, 1))
    opaque, half, clear = ((0,) * (len(mode) - 1) + (alpha,) for alpha in (255, 128, 0))
    for x, pixel in enumerate((opaque, half, clear)):
        image.putpixel((x, 0), pixel)
    assert pixels(decoded(image)) == [(0, 0, 0), (127, 127, 127), WHITE]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_shows_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(decoded(image, kind, transparency=1)) == [RED, WHITE]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_without_alpha_channel_shows_white(mode: str, colour: object) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), colour)
    assert pixels(decoded(image, "PNG", transparency=colour)) == [(0, 0, 0), WHITE]


def test_cmyk_is_converted() -> None:
    result = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert pixels(result)[0] == RED
    result = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(np.asarray(result).astype(int) - RED).max() <= 3


def test_one_bit_pictures_become_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(decoded(image)) == [(0, 0, 0), WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greys_keep_their_full_range(kind: str) -> None:
    greys = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    result = decoded(Image.fromarray(greys), kind)
    assert np.asarray(result)[:, :, 0].ravel().tolist() == list(range(256))


def test_a_dark_16_bit_picture_stays_dark() -> None:
    result = decoded(Image.fromarray(np.full((2, 2), 257, dtype=np.uint16)))
    assert pixels(result)[0] == (1, 1, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_greys_without_a_common_white_are_stretched_to_their_own_range(dtype: type) -> None:
    greys = np.array([[-1000, 0, 1000]], dtype=dtype)
    assert [red for red, _, _ in pixels(decoded(Image.fromarray(greys), "TIFF"))] == [0, 128, 255]
    assert pixels(decoded(Image.fromarray(greys * 0), "TIFF"))[0] == (0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("WEBP", LOSSLESS["WEBP"]), ("PNG", {})]
)
def test_animations_show_their_first_frame(kind: str, options: dict[str, object]) -> None:
    others = [Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (4, 4), "green")]
    first = Image.new("RGB", (4, 4), RED)
    result = decoded(first, kind, save_all=True, append_images=others, **options)
    assert set(pixels(result)) == {RED}


def test_a_stereo_picture_shows_its_first_view() -> None:
    image = Image.new("RGB", (8, 8), RED)
    other = Image.new("RGB", (8, 8), "blue")
    result = decoded(image, "MPO", save_all=True, append_images=[other])
    assert np.abs(np.asarray(result).astype(int) - RED).max() <= 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in (*LOSSLESS, *LOSSY)),
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("kept", [0.99, 0.6, 0.2])
def test_a_picture_that_is_cut_off_is_refused(
    kind: str, options: dict[str, object], kept: float
) -> None:
    data = encoded(NOISE, kind, **options)
    with pytest.raises(ImageError, match="broken or cut off") as caught:
        decode(data[: int(len(data) * kept)], LIMITS)
    assert caught.value.permanent


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_too_many_pixels_are_refused_before_they_are_decoded(kind: str) -> None:
    data = encoded(Image.new("L", (200, 51)), kind)
    # An AVIF container says how large the picture is only when it is whole.
    header_alone = data if kind in {"AVIF", "WEBP", "TIFF"} else data[: len(data) - 20]
    with pytest.raises(ImageError, match=r"200 x 51 pixels; the limit is 10000"):
        decode(header_alone, LIMITS)


def test_the_limit_on_pixels_is_ours_and_not_pillows() -> None:
    claiming = bytearray(encoded(Image.new("1", (1, 1))))
    claiming[16:24] = struct.pack(">II", 12_000, 10_000)
    claiming[29:33] = struct.pack(">I", zlib.crc32(claiming[12:29]))
    with pytest.raises(ImageError, match=r"12000 x 10000 pixels; the limit is 10000"):
        decode(bytes(claiming), LIMITS)


@pytest.mark.parametrize(
    ("data", "message", "permanent"),
    [
        (b"", "empty", True),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "token", False),
        (b'{"detail": "Invalid token."}', "token", False),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", True),
        (b"%PDF-1.7", "supported format", True),
        (b"P6 1 1 255\n\0\0\0", "supported format", True),
        (b"\x89PNG\r\n\x1a\n", "broken", True),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, message: str, permanent: bool) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        decode(data, LIMITS)
    assert caught.value.permanent is permanent


@given(
    st.sampled_from([encoded(NOISE, kind) for kind in ("PNG", "GIF", "BMP", "JPEG", "WEBP")]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5),
)
def test_damaged_bytes_decode_or_are_refused_with_one_error(
    data: bytes, damage: list[tuple[int, int]]
) -> None:
    damaged = bytearray(data)
    for position, value in damage:
        damaged[position] = value
    with contextlib.suppress(ImageError):
        assert decode(bytes(damaged), LIMITS).mode == "RGB"
