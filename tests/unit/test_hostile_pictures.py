"""Files made to fill the memory, to take for ever, or to be something else as well."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from backend.errors import ImageError
from backend.labelstudio.bombs import MAX_SCANS, MAX_STRIPS
from backend.labelstudio.decoding import ImageLimits, decode

LIMITS = ImageLimits(max_bytes=50_000_000, max_pixels=1_000_000, timeout=5.0, attempts=1)
FORMATS = [
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    *(["AVIF"] if features.check("avif") else []),
]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))

Entry = tuple[int, int, int, int]

# A picture in its own mode, on a layer, on white, and as RGB, of 4 bytes a pixel each, turned; its
# file some times; and what Pillow lets the texts of a PNG take.
MOST_MEMORY = 24 * LIMITS.max_pixels + 80_000_000

MEASURE = """
import json, resource, sys
from pathlib import Path
from PIL import Image
from backend.errors import ImageError
from backend.labelstudio.decoding import ImageLimits, decode
from backend.logs import configure_logging

def peak():
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # What getrusage says begins with the most that the parent had.
    lines = status.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

configure_logging("INFO")
data, limits = Path(sys.argv[1]).read_bytes(), ImageLimits(*json.loads(sys.argv[2]))
Image.init()
before = peak()
try:
    outcome = list(decode(data, limits).size)
except ImageError as error:
    outcome = str(error)
print(json.dumps([outcome, peak() - before]))
"""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def zeros(count: int) -> bytes:
    """Return so many zeros, compressed a thousand times."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*parts, packer.flush()])


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes) -> bytes:
    data = encoded(NOISE, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(*entries: Entry, after: bytes = b"", following: int = 0) -> bytes:
    """Return a TIFF of one directory; an entry is a tag, a type, a count and a value."""
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return head + body + struct.pack("<I", following) + after


def grey_tiff(
    width: int,
    height: int,
    *more: tuple[int, int, int, int],
    after: bytes = b"",
    following: int = 0,
) -> bytes:
    return tiff(
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        *more,
        after=after,
        following=following,
    )


ONE_STRIP = ((273, 4, 1, 8), (278, 4, 1, 8), (279, 4, 1, 64))


def tiff_of_giant_tiles() -> bytes:
    tiles = zeros(400 << 20)
    entries = (
        (256, 4, 1, 10),
        (257, 4, 1, 10),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, 20_000),
        (323, 4, 1, 20_000),
        (324, 4, 1, 8 + 2 + 12 * 10 + 4),
        (325, 4, 1, len(tiles)),
    )
    return tiff(*entries, after=tiles)


def tiff_of_rows(rows: int) -> bytes:
    places = 8 + 2 + 12 * 9 + 4
    strips = ((273, 4, rows, places), (278, 4, 1, 1), (279, 4, rows, places + 4 * rows))
    after = struct.pack("<I", 8) * rows + struct.pack("<I", 1) * rows
    return grey_tiff(1, rows, *strips, after=after)


def tiff_of_tiles(tiles: int) -> bytes:
    """Return a TIFF of so many tiles of 960,000 pixels, which are all the same bytes."""
    packed = zeros(1 << 20)
    places = 8 + 2 + 12 * 10 + 4
    entries = (
        (256, 4, 1, 16 * tiles),
        (257, 4, 1, 1),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, 16),
        (323, 4, 1, 60_000),
        (324, 4, tiles, places),
        (325, 4, tiles, places + 4 * tiles),
    )
    start = struct.pack("<I", places + 8 * tiles)
    return tiff(*entries, after=start * tiles + struct.pack("<I", len(packed)) * tiles + packed)


def jpeg_with(segments: bytes) -> bytes:
    data = encoded(NOISE, "JPEG")
    return data[:2] + segments + data[2:]


def fax(rows: int) -> bytes:
    data = np.random.default_rng(0).bytes(rows)
    return tiff(
        (256, 4, 1, 8),
        (257, 4, 1, rows),
        (258, 3, 1, 1),
        (259, 3, 1, 2),
        (262, 3, 1, 0),
        (277, 3, 1, 1),
        (278, 4, 1, rows),
        (273, 4, 1, 8 + 2 + 12 * 9 + 4),
        (279, 4, 1, len(data)),
        after=data,
    )


def bmp_of_runs() -> bytes:
    """Return a BMP of one row that ends at its first pixel, again and again."""
    rows = b"\1\1\0\0" * 3_000_000
    head = struct.pack("<2sIHHI", b"BM", 1078 + len(rows), 0, 0, 1078)
    return (
        head
        + struct.pack("<IiiHHIIiiII", 40, 900_000, 1, 1, 8, 1, len(rows), 0, 0, 0, 0)
        + bytes(1024)
        + rows
    )


def jpeg_of_scans(scans: int) -> bytes:
    data = encoded(NOISE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def exif_of(tags: int, size: int) -> bytes:
    """Return an EXIF block whose tags all have the same long value."""
    return tiff(*((20_000 + tag, 7, size, 8) for tag in range(tags)), after=bytes(size))


def gif_with(*extensions: bytes) -> bytes:
    data = encoded(NOISE.convert("L"), "GIF")
    start = 13 + 3 * (2 << (data[10] & 7))
    return data[:start] + b"".join(extensions) + data[start:]


def gif_comment(pieces: int) -> bytes:
    return b"\x21\xfe" + b"\2xx" * pieces + b"\0"


def avif_with_exif() -> bytes:
    bomb = exif_of(2000, 1_000_000)
    # The encoder reads what it is given, so that it gets another block of that size.
    harmless = tiff().ljust(len(bomb), b"x")
    return encoded(NOISE, "AVIF", exif=harmless).replace(harmless, bomb)


def animation(kind: str, frames: int) -> bytes:
    others = [Image.new("L", NOISE.size, number % 256) for number in range(1, frames)]
    return encoded(NOISE.convert("L"), kind, save_all=True, append_images=others)


def patched(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    """Return the file with other bytes so far behind a marker."""
    start = data.index(marker) + offset
    return data[:start] + value + data[start + len(value) :]


BOMBS = {
    "a profile": lambda: png_with(png_chunk(b"iCCP", b"x\0\0" + zeros(200 << 20))),
    "a compressed text": lambda: png_with(png_chunk(b"zTXt", b"x\0\0" + zeros(200 << 20))),
    "compressed texts": lambda: png_with(
        *(png_chunk(b"zTXt", b"%d\0\0" % number + zeros(1 << 20)) for number in range(200))
    ),
    "international texts": lambda: png_with(
        *(png_chunk(b"iTXt", b"%d\0\1\0\0\0" % number + zeros(1 << 20)) for number in range(200))
    ),
    "PNG data past the last row": lambda: (
        encoded(NOISE, "PNG")[:33] + png_chunk(b"IDAT", zeros(200 << 20)) + png_chunk(b"IEND", b"")
    ),
    "EXIF of a PNG": lambda: png_with(png_chunk(b"eXIf", exif_of(2000, 1_000_000))),
    "EXIF of a WebP": lambda: encoded(NOISE, "WEBP", exif=exif_of(2000, 1_000_000)),
    "tags of a TIFF": lambda: grey_tiff(
        8,
        8,
        *ONE_STRIP,
        *((50_000 + tag, 7, 1_000_000, 8) for tag in range(2000)),
        after=bytes(1_000_000),
    ),
    "a TIFF directory that follows itself": lambda: grey_tiff(
        8, 8, *ONE_STRIP, after=bytes(64), following=8
    ),
    "a TIFF of more tags than it has bytes": lambda: (
        b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 256, 4, 1, 8)
    ),
    "giant tiles": tiff_of_giant_tiles,
    "countless strips": lambda: tiff_of_rows(900_000),
    "countless frames of a GIF": lambda: animation("GIF", 1000),
    "countless frames of a WebP": lambda: animation("WEBP", 300),
    "countless comments of a GIF": lambda: gif_with(
        b"\x21\xfe" + (b"\xff" + b"x" * 255) * 20_000 + b"\0"
    ),
    "countless pieces of a GIF's comment": lambda: gif_with(gif_comment(5_000_000)),
    "countless chunks of a PNG": lambda: png_with(png_chunk(b"teSt", b"") * 3_000_000),
    "a frame past a GIF's screen": lambda: patched(
        gif_with(), b",\0\0\0\0", 5, struct.pack("<HH", 60_000, 60_000)
    ),
    "a TIFF of countless tiles": lambda: tiff_of_tiles(50),
    "countless EXIF segments": lambda: jpeg_with((b"\xff\xe1\0\x12Exif\0\0" + bytes(10)) * 200_000),
    "countless empty segments": lambda: jpeg_with(b"\xff\xe5\0\2" * 2_000_000),
    "endless filling": lambda: jpeg_with(b"\xff" * 8_000_000),
    "a fax of broken rows": lambda: fax(200_000),
    "a BMP of runs": bmp_of_runs,
    "a JPEG that claims to be huge": lambda: patched(
        encoded(NOISE, "JPEG"), b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500)
    ),
    "a WebP that claims to be huge": lambda: patched(
        animation("WEBP", 2), b"VP8X", 12, (16_000).to_bytes(3, "little") * 2
    ),
}
if "AVIF" in FORMATS:
    BOMBS["an AVIF that claims to be huge"] = lambda: patched(
        encoded(NOISE, "AVIF"), b"ispe", 8, struct.pack(">II", 16_000, 16_000)
    )
    BOMBS["EXIF of an AVIF"] = avif_with_exif


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_file_fills_no_memory_and_no_log(bomb: str, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(BOMBS[bomb]())
    limits = json.dumps([LIMITS.max_bytes, LIMITS.max_pixels, LIMITS.timeout, LIMITS.attempts])
    command = [sys.executable, "-c", MEASURE, str(file), limits]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcome, taken = json.loads(done.stdout)
    assert taken <= MOST_MEMORY + 3 * file.stat().st_size, outcome
    assert done.stderr == ""


def test_tiles_larger_than_a_picture_may_be_are_refused() -> None:
    with pytest.raises(ImageError, match="tiles of 20000 x 20000 pixels; the limit is 1000000"):
        decode(tiff_of_giant_tiles(), LIMITS)


def test_tiles_larger_than_their_picture_are_read() -> None:
    entries = ((322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 1, 134), (325, 4, 1, 256))
    assert decode(grey_tiff(3, 2, *entries, after=bytes(256)), LIMITS).size == (3, 2)


def test_the_size_of_tiles_is_found_in_every_kind_of_tiff() -> None:
    side = 20_000
    for order in "<>":
        mark = b"II" if order == "<" else b"MM"
        old = struct.pack(f"{order}2sHIH", mark, 42, 8, 2)
        short = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, side, 0) for tag in (322, 323))
        new = struct.pack(f"{order}2sHHHQQ", mark, 43, 8, 0, 16, 2)
        long = b"".join(struct.pack(f"{order}HHQQ", tag, 16, 1, side) for tag in (322, 323))
        elsewhere = b"".join(struct.pack(f"{order}HHII", tag, 16, 1, 38) for tag in (322, 323))
        after = bytes(4) + struct.pack(f"{order}Q", side)
        for data in (old + short, new + long, old + elsewhere + after):
            with pytest.raises(ImageError, match="tiles of 20000 x 20000"):
                decode(data, LIMITS)


def test_a_tiff_has_a_limit_on_its_strips() -> None:
    assert decode(tiff_of_rows(2000), LIMITS).size == (1, 2000)
    with pytest.raises(ImageError, match=f"{MAX_STRIPS + 1} strips or tiles"):
        decode(tiff_of_rows(MAX_STRIPS + 1), LIMITS)


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        (tiff_of_tiles(50), "50 tiles of 16 x 60000 pixels"),
        (jpeg_with((b"\xff\xe1\0\x12Exif\0\0" + bytes(10)) * 200), "far more around it"),
        (jpeg_with(b"\xff\xe5\0\2" * 6_000), "far more around it"),
        (jpeg_with(b"\xff" * 20_000), "far more around it"),
        (b"\xff\xd8\xff" + bytes(20_000), "far more around it"),
        (gif_with(gif_comment(300_000)), "far more pieces"),
        (gif_with(b"x" * 600_000), "far more pieces"),
        (png_with(png_chunk(b"teSt", b"") * 300_000), "far more pieces"),
        (fax(30_000), "fax of more than 20000 rows"),
        (bmp_of_runs(), "large BMP of runs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_costs_more_than_its_pixels_is_refused(bomb: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(bomb, LIMITS)


def test_what_cameras_and_programs_write_is_read() -> None:
    segment = b"\xff\xe2" + struct.pack(">H", 65_535) + bytes(65_533)
    assert decode(jpeg_with(segment * 200), LIMITS).size == NOISE.size
    assert decode(jpeg_with(b"\xff" * 100), LIMITS).size == NOISE.size
    assert decode(gif_with(gif_comment(20_000)), LIMITS).size == NOISE.size
    assert decode(png_with(png_chunk(b"teSt", b"") * 20_000), LIMITS).size == NOISE.size
    assert decode(fax(1000), LIMITS).size == (8, 1000)
    assert decode(tiff_of_tiles(8), LIMITS).size == (128, 1)


def test_a_jpeg_has_a_limit_on_its_scans() -> None:
    assert decode(jpeg_of_scans(20), LIMITS).size == NOISE.size
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        decode(jpeg_of_scans(MAX_SCANS + 1), LIMITS)


@pytest.mark.parametrize("between", [b"\xff\x01\xff\xff", b"\xff\xff\xff", b"\xff\xfe\0\2", b"x"])
def test_no_marker_hides_scans(between: bytes) -> None:
    data = jpeg_of_scans(1)
    last = data.rindex(b"\xff\xda")
    scans = (data[last:-2] + between) * (2 * MAX_SCANS)
    with pytest.raises(ImageError, match="scans"):
        decode(data[:last] + scans + data[-2:], LIMITS)


def test_what_follows_a_jpegs_end_or_is_told_about_it_counts_for_no_scans() -> None:
    data = encoded(NOISE, "JPEG")
    scans = b"\xff\xda" * 2 * MAX_SCANS
    told = b"\xff\xe1" + struct.pack(">H", len(scans) + 2) + scans
    assert decode(data + scans, LIMITS).size == NOISE.size
    assert decode(data[:2] + told + data[2:], LIMITS).size == NOISE.size


# Files that are something else, or something else as well


@pytest.mark.parametrize(
    "kind",
    sorted(
        {"EPS", "PDF", "ICO", "ICNS", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "DDS", "XBM", "IM"}
    ),
)
def test_a_format_that_browsers_do_not_show_is_refused(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    mode = "1" if kind == "XBM" else "RGB"
    with pytest.raises(ImageError, match="not a picture in a supported format"):
        decode(encoded(NOISE.resize((32, 32)).convert(mode), kind), LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        b"8BPS\0\1" + bytes(20),
        b"PK\3\4" + bytes(100),
        b"\x1f\x8b\x08" + bytes(100),
        b"\x7fELF" + bytes(100),
        b"#!/bin/sh\n",
        b"GIMP" + bytes(100),
        b"\xd7\xcd\xc6\x9a" + bytes(100),
        b"\x01\0\0\0" + bytes(100),
    ],
)
def test_other_files_are_refused_unopened(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a picture in a supported format"):
        decode(data, LIMITS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("other", [b"<script>alert(1)</script>", b"PK\3\4" + bytes(50)])
def test_what_is_added_to_a_picture_changes_nothing(kind: str, other: bytes) -> None:
    data = encoded(NOISE, kind)
    assert decode(data + other, LIMITS).tobytes() == decode(data, LIMITS).tobytes()
    with pytest.raises(ImageError):
        decode(other + data, LIMITS)


# Any file


def variants() -> list[bytes]:
    """Return a small picture of each kind, with what its format can also hold."""
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [encoded(NOISE, kind) for kind in FORMATS]
    found += [encoded(NOISE, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    found += [encoded(NOISE.convert("RGBA"), kind) for kind in ("PNG", "WEBP", "TIFF")]
    found += [encoded(NOISE.convert("P"), kind) for kind in ("PNG", "GIF", "BMP", "TIFF")]
    found += [encoded(NOISE.convert("CMYK"), "JPEG"), encoded(NOISE.convert("F"), "TIFF")]
    found += [encoded(NOISE, "TIFF", compression=each) for each in ("tiff_lzw", "jpeg")]
    found += [encoded(NOISE, "JPEG", progressive=True), encoded(NOISE, "WEBP", lossless=True)]
    return [*found, *(animation(kind, 3) for kind in ("PNG", "GIF", "WEBP"))]


VARIANTS = variants()
BYTES = st.integers(0, 255) | st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])


@given(
    st.sampled_from(VARIANTS),
    st.lists(st.tuples(st.integers(0, 5000), BYTES), max_size=12),
    st.tuples(st.integers(0, 5000), st.binary(max_size=20)),
    st.none() | st.integers(0, 5000),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_damaged_files_decode_or_are_refused_with_one_error(
    data: bytes, changed: list[tuple[int, int]], added: tuple[int, bytes], end: int | None
) -> None:
    damaged = bytearray(data)
    for position, value in changed:
        damaged[position % len(data)] = value
    position = added[0] % len(data)
    damaged[position:position] = added[1]
    try:
        picture = decode(bytes(damaged[:end]), LIMITS)
    except ImageError:
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height <= LIMITS.max_pixels


@given(st.sampled_from(VARIANTS), st.binary(max_size=400))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rubbish_behind_a_files_first_bytes_is_refused_with_one_error(
    data: bytes, rubbish: bytes
) -> None:
    try:
        decode(data[:16] + rubbish, LIMITS)
    except ImageError:
        return
