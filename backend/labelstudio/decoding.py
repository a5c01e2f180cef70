"""Bytes to the picture that an annotator sees."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageFile

from backend.errors import ImageError, ImageFault
from backend.labelstudio.bombs import BoundedFile, refuse_bomb

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may cost: bytes, pixels, seconds for all attempts, attempts."""

    max_bytes: int
    max_pixels: int
    timeout: float
    attempts: int


def decode(data: bytes, limits: ImageLimits, enough: int | None = None) -> Image.Image:
    """Decode a picture as an annotator sees it: upright, on white, 8 bits, RGB, first frame.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, in a fraction of the
    time, where both sides keep at least `enough` pixels.

    Raises ImageError for what is no picture, is broken or cut off, or has too many pixels.
    """
    try:
        kind = _kind(data)
        refuse_bomb(kind, data, limits.max_pixels)
        # Image.open would warn about pictures past a process-wide pixel limit before their size
        # is known to us, so its registry of formats is used without it.
        # A BMP's runs are read byte by byte, and bounded already.
        file = BytesIO(data) if kind == "BMP" else BoundedFile(data)
        image = Image.OPEN[kind][0](file, "")
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageError(
                f"the picture has {width} x {height} pixels; the limit is {limits.max_pixels}",
                fault=ImageFault.TOO_LARGE,
            )
        if enough is not None:
            _shrink(image, enough)
        if kind == "JPEG":
            # Whole, for between two pieces the decoder's thread waits for others of Python's.
            image.decodermaxblock = len(data)
        image.load()
        turn = _turn(image)
        # Pillow copies what is RGB already.
        is_rgb = image.mode == "RGB" and not image.has_transparency_data
        picture = image if is_rgb else to_rgb(image)
        return picture if turn is None else picture.transpose(turn)
    except ImageError:
        raise
    except Exception as error:
        # On hostile bytes Pillow's decoders raise almost anything.
        raise ImageError(f"the picture is broken or cut off: {error}") from error


def _kind(data: bytes) -> str:
    Image.init()
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue
        accept = Image.OPEN[name][1]
        accepted = accept(data[:16]) if accept else True
        if isinstance(accepted, str):
            raise ImageError(f"this installation of Pillow cannot read {name}")
        if accepted:
            return name
    raise _not_a_picture(data)


def _shrink(image: ImageFile.ImageFile, enough: int) -> None:
    width, height = image.size
    for scale in (8, 4, 2):
        # A side that is no multiple would be stretched by part of a pixel.
        fits = width % scale == 0 and height % scale == 0
        if fits and min(width, height) >= scale * enough:
            # Does nothing in formats that cannot.
            image.draft(None, (width // scale, height // scale))
            return


def _not_a_picture(data: bytes) -> ImageError:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return ImageError("the picture is SVG, which is not supported; convert it to PNG")
    if head.startswith((b"<", b"{")):
        return ImageError(
            "not a picture: the server sent a page or a message; is the link right, and the "
            "token valid?",
            permanent=False,
        )
    if not data:
        return ImageError("not a picture: the file is empty")
    return ImageError(f"not a picture in a supported format ({', '.join(_FORMATS)})")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - a broken EXIF block hides no pixel
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture with 8 bits a channel, on white where it is transparent."""
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    # 16 bits have a white that all programs agree on; 32 bits and floats have none.
    is_16_bit = image.mode.startswith("I;16") or image.format == "PNG"
    low, high = (0.0, 65535.0) if is_16_bit else (float(values.min()), float(values.max()))
    values -= low
    values *= 255.0 / (high - low or 1.0)
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
