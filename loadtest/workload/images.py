"""Pictures that no two requests share: a valid PNG of random tiles, made without an imaging library. Pure."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from typing import Final

TILE_PIXELS: Final = 8
"""Coarse noise: a picture of a megapixel has some 50 kB, not 3 MB, and no two are alike all the same."""
_RGB8: Final = bytes((8, 2, 0, 0, 0))


def noise_png(width: int, height: int, rng: random.Random) -> bytes:
    """A picture of that many pixels, eight bits each of red, green and blue."""
    tiles, rows = -(-width // TILE_PIXELS), []
    for top in range(0, height, TILE_PIXELS):
        colours = rng.randbytes(3 * tiles)
        line = b"".join(colours[at : at + 3] * TILE_PIXELS for at in range(0, len(colours), 3))
        rows.append((b"\0" + line[: 3 * width]) * min(TILE_PIXELS, height - top))
    head = struct.pack(">II", width, height) + _RGB8
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", head),
            (b"IDAT", zlib.compress(b"".join(rows), 1)),
            (b"IEND", b""),
        )
    )


def image_url(width: int, height: int, rng: random.Random) -> str:
    """The same as a data URL, as chat requests carry it."""
    return "data:image/png;base64," + base64.b64encode(noise_png(width, height, rng)).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
