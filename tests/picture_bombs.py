"""Hostile and odd picture files, made as small as their makers would make them."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A valid PNG of zeros written without ever holding its pixels; `extra` chunks go before them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * channels * depth + 7) // 8)
    packer = zlib.compressobj(9)
    # One block of rows again and again: fast, and never more than a few megabytes.
    count = max(1, (1 << 20) // len(row))
    block = row * count
    packed = [packer.compress(block) for _ in range(height // count)]
    packed += [packer.compress(row * (height % count)), packer.flush()]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return _SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ztxt_bomb() -> bytes:
    """A picture of 8 x 8 with a comment of 200 MB."""
    packer = zlib.compressobj(9)
    packed = [packer.compress(bytes(1 << 20)) for _ in range(200)] + [packer.flush()]
    return png(8, 8, extra=chunk(b"zTXt", b"Comment\0\0" + b"".join(packed)))


def gif(frames: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """The first frame red, all others blue."""
    pictures = [Image.new("RGB", size, "red" if number == 0 else (0, 0, 255 - number % 5)) for number in range(frames)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=20)
    return file.getvalue()


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
    return file.getvalue()
