"""Files that would cost far more than their pixels, told from their bytes before they are decoded.

Those of countless pieces are told while they are read.
Pillow and its libraries bound the rest: compressed text and profiles in a PNG, the values of a
TIFF's tags, animations (only the first frame is decoded).
"""

from __future__ import annotations

import re
import struct
from io import BytesIO
from itertools import islice

from backend.errors import ImageError

# A progressive JPEG has some ten. Each can be a hundred bytes and go over all pixels again.
MAX_SCANS = 100
# A row or a tile each; Pillow keeps some 300 bytes for one.
MAX_STRIPS = 100_000

# Pillow looks at each segment before the first scan, and adds each of EXIF to those before it.
MAX_SEGMENTS = 5_000
MAX_EXIF_SEGMENTS = 100
MAX_FILLING = 10_000
# Decoded in Python.
MAX_RLE = 10_000_000
# Pillow takes a GIF's blocks and a PNG's chunks apart in Python, two or three reads each, and keeps
# many: some sixty bytes a read. A large picture has thousands.
MAX_READS = 500_000
# libtiff writes a line about each broken row of a fax, past every log.
MAX_FAX_ROWS = 20_000

_SCAN, _END, _EXIF = b"\xff\xda", b"\xd9", b"\xff\xe1"
# The markers that a length follows, and the end.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")

_ROWS, _COMPRESSION = 257, 259
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_FAX = frozenset({2, 3, 4, 32771})
# Pixels of all tiles: they reach over the edges, and may hold one channel each.
_IN_TILES = 8
# Bytes of the whole numbers that a tag can hold: byte, short, long, IFD and their variants.
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}


class BoundedFile(BytesIO):
    """A file in memory that raises ImageError once it is read in far too many pieces."""

    def __init__(self, data: bytes) -> None:
        """Take all that the file holds."""
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all that are left."""
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError("the picture is in far more pieces than a camera or program writes")
        return super().read(size)


def refuse_bomb(kind: str, data: bytes, max_pixels: int) -> None:
    """Raise ImageError for a file that costs far more than its pixels.

    JPEGs of endless scans or segments; TIFFs of giant tiles, countless strips or fax rows; large
    BMPs of runs. What the file says elsewhere is not checked; a TIFF or BMP that is cut off raises
    struct.error.
    """
    if kind == "JPEG":
        _check_segments(data)
        if _has_too_many_scans(data):
            raise ImageError(f"the picture has more than {MAX_SCANS} scans")
    if kind == "TIFF":
        _check_directory(*_first_directory(data), max_pixels)
    if kind == "BMP" and _holds_runs(data):
        raise ImageError("the picture is a large BMP of runs; convert it to PNG")


def _check_segments(data: bytes) -> None:
    segments = exif = filling = 0
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) and marker[0] != _SCAN and marker[1] != _END:
        segments += 1
        exif += marker[0] == _EXIF
        filling += marker.start() - at
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if segments > MAX_SEGMENTS or exif > MAX_EXIF_SEGMENTS or filling > MAX_FILLING:
            break
    else:
        filling += (len(data) if marker is None else marker.start()) - at
        if filling <= MAX_FILLING:
            return
    raise ImageError("the picture has far more around it than a camera or program adds")


def _check_directory(counts: dict[int, int], values: dict[int, int], max_pixels: int) -> None:
    strips = max(counts.get(tag, 0) for tag in (_STRIP_OFFSETS, _TILE_OFFSETS))
    if strips > MAX_STRIPS:
        raise ImageError(f"the picture has {strips} strips or tiles; the limit is {MAX_STRIPS}")
    width, length = values.get(_TILE_WIDTH, 0), values.get(_TILE_LENGTH, 0)
    if width * length > max_pixels:
        raise ImageError(
            f"the picture has tiles of {width} x {length} pixels; the limit is {max_pixels}"
        )
    tiles = counts.get(_TILE_OFFSETS, 0)
    if width * length * tiles > _IN_TILES * max_pixels:
        raise ImageError(
            f"the picture has {tiles} tiles of {width} x {length} pixels; the limit is "
            f"{_IN_TILES * max_pixels} in all"
        )
    if values.get(_COMPRESSION) in _FAX and values.get(_ROWS, 0) > MAX_FAX_ROWS:
        raise ImageError(f"the picture is a fax of more than {MAX_FAX_ROWS} rows")


def _holds_runs(data: bytes) -> bool:
    size, width, height = struct.unpack_from("<Iii", data, 14)
    if size < struct.calcsize("<IiiHHI"):
        return False
    (compression,) = struct.unpack_from("<I", data, 30)
    return compression in (1, 2) and max(width * abs(height), len(data)) > MAX_RLE


def _has_too_many_scans(data: bytes) -> bool:
    # A quick look suffices, but for pictures with a film or another picture behind their end.
    # It ends at the first too many, and takes a third of the time of `bytes.count`.
    if next(islice(re.finditer(_SCAN, data), MAX_SCANS, None), None) is None:
        return False
    scans, at = 0, 2
    while scans <= MAX_SCANS:
        marker = _JPEG_MARKER.search(data, at)
        if marker is None or marker[1] == _END:
            return False
        scans += marker[0] == _SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True


def _first_directory(data: bytes) -> tuple[dict[int, int], dict[int, int]]:
    """Return how many values each tag of a TIFF's first directory has, and the first of them."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = struct.unpack_from(f"{order}H", data, 2) == (43,)
    word, number, entry = ("Q", "Q", "HHQ8s") if is_big else ("L", "H", "HHL4s")
    (at,) = struct.unpack_from(order + word, data, 8 if is_big else 4)
    (entries,) = struct.unpack_from(order + number, data, at)
    at += struct.calcsize(order + number)
    size = struct.calcsize(order + entry)
    counts: dict[int, int] = {}
    values: dict[int, int] = {}
    for tag, kind, count, field in struct.iter_unpack(
        order + entry, data[at : at + min(entries * size, len(data) // size * size)]
    ):
        width = _WHOLE_NUMBERS.get(kind, 0)
        if width * count > len(field):
            (place,) = struct.unpack(order + word, field)
            field = data[place : place + width]
        value = int.from_bytes(field[:width], "little" if order == "<" else "big")
        # Readers differ in which of two entries with one tag counts.
        counts[tag] = max(count, counts.get(tag, 0))
        values[tag] = max(value, values.get(tag, 0))
    return counts, values
