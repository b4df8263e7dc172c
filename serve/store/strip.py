"""Pictures without what cameras and programs wrote about them: no place, no owner, no preview, the same pixels.

Nothing is decoded here: the parts of a file that hold pixels and colours are copied, the rest is left out. Of EXIF only
the orientation stays, since without it the picture would lie on its side.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator


def stripped(data: bytes) -> tuple[bytes, str] | None:
    """The picture's bytes without metadata and its type; None for what is no picture we know, or a broken one."""
    try:
        for begins, mime, strip in _KINDS:
            if data.startswith(begins):
                return strip(data), mime
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data), "image/webp"
    except (IndexError, ValueError, struct.error):
        return None
    return None


def _jpeg(data: bytes) -> bytes:
    kept = [b"\xff\xd8"]
    orientation = 1
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):  # without the small picture that may follow in it
            kept.append(b"\xff\xe0\0\x10" + body[:12].ljust(12, b"\0") + b"\0\0")
        elif not (0xE0 <= marker <= 0xFE) or _shows(marker, body):
            kept.append(data[start:end])
    exif = b"Exif\0\0" + _exif(orientation)
    if orientation != 1:
        place = 2 if len(kept) > 1 and kept[1][:2] == b"\xff\xe0" else 1  # after JFIF, where there is one
        kept.insert(place, b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif)
    return b"".join(kept)


def _shows(marker: int, body: bytes) -> bool:
    """Whether an application's segment bears on how the picture looks: Adobe's colours, a colour profile."""
    is_adobes = marker == 0xEE and body.startswith(b"Adobe") and len(body) == 12
    return is_adobes or (marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the end of the image; what may follow that is no part of it."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        at = _FILLING.match(data, at).end() - 1  # pyright: ignore[reportOptionalMemberAccess]  there is one
        marker = data[at + 1]
        if marker == 0xD9:
            yield marker, at, at + 2
            return
        length = 0 if marker == 0x01 or 0xD0 <= marker <= 0xD7 else struct.unpack(">H", data[at + 2 : at + 4])[0]
        end = at + 2 + length
        if marker == 0xDA:  # then come pixels, up to the next marker that is neither stuffing nor a restart
            end = _end_of_scan(data, end)
        if end > len(data):
            raise ValueError("cut off")
        yield marker, at, end
        if end == len(data):  # a file without its last two bytes still shows
            return
        at = end


# In C: a file may be made to have millions of these.
_FILLING = re.compile(rb"\xff+")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""But for stuffing, restarts and filling."""


def _end_of_scan(data: bytes, at: int) -> int:
    found = _MARKER.search(data, at)
    return found.start() if found else len(data)


_PNG_KEPT = (
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"bKGD",
    b"pHYs", b"acTL", b"fcTL", b"fdAT",
)  # fmt: skip


def _png(data: bytes) -> bytes:
    kept = [data[:8]]
    at = 8
    while True:
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise ValueError("cut off")
        if name in _PNG_KEPT:
            kept.append(data[at:end])
        elif name == b"eXIf" and (orientation := _orientation(data[at + 8 : end - 4])) != 1:
            kept.append(_png_chunk(b"eXIf", _exif(orientation)))
        if name == b"IEND":
            return b"".join(kept)
        at = end


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _webp(data: bytes) -> bytes:
    kept: list[tuple[bytes, bytes]] = []
    at, end = 12, min(len(data), 8 + struct.unpack("<I", data[4:8])[0])
    while at + 8 <= end:
        name, (length,) = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise ValueError("cut off")
        if name == b"EXIF":
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
            if orientation != 1:
                kept.append((name, _exif(orientation)))
        elif name in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ICCP"):
            kept.append((name, body))
        elif name == b"ANMF":
            kept.append((name, body[:16] + _webp_frame(body[16:])))
        at += 8 + length + length % 2
    if not kept:
        raise ValueError("nothing in it")
    if kept[0][0] == b"VP8X":  # whose first byte says what else there is
        has_exif = 0x08 if any(name == b"EXIF" for name, _ in kept) else 0
        flags = kept[0][1]
        kept[0] = (b"VP8X", bytes([flags[0] & ~0x0C | has_exif]) + flags[1:])
    chunks = b"".join(name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in kept)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _webp_frame(data: bytes) -> bytes:
    """The pixels of one frame of an animation, which may have more in it."""
    kept, at = b"", 0
    while at + 8 <= len(data):
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        end = at + 8 + length + length % 2
        if data[at : at + 4] in (b"VP8 ", b"VP8L", b"ALPH"):
            kept += data[at:end]
        at = end
    return kept


def _gif(data: bytes) -> bytes:
    at = 13 + _gif_table(data[10])
    kept = [data[:at]]
    while data[at] != 0x3B:
        start = at
        if data[at] == 0x21:
            at = _after_blocks(data, at + 2)
            loops = data[start + 1] == 0xFF and data[start + 3 : start + 14] == b"NETSCAPE2.0"
            if data[start + 1] == 0xF9 or loops:
                kept.append(data[start:at])
        elif data[at] == 0x2C:
            at = _after_blocks(data, at + 11 + _gif_table(data[at + 9]))
            kept.append(data[start:at])
        else:
            raise ValueError("no block")
    return b"".join([*kept, b"\x3b"])


def _gif_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1


def _bmp(data: bytes) -> bytes:
    """It holds nothing but pixels; what follows them goes."""
    size, _, _, header = struct.unpack("<IIII", data[2:18])
    if header not in (12, 40, 52, 56, 64, 108, 124):
        raise ValueError("no header")
    return data[:size] if 54 <= size < len(data) else data


def _orientation(tiff: bytes) -> int:
    """1 where none is said, or nonsense."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (at,) = struct.unpack(order + "I", tiff[4:8])
        (count,) = struct.unpack(order + "H", tiff[at : at + 2])
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack(order + "HHIH", tiff[place : place + 10])
            if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
                return value
    except (KeyError, struct.error):
        pass
    return 1


def _exif(orientation: int) -> bytes:
    """The smallest EXIF that says so."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


_KINDS = (
    (b"\xff\xd8\xff", "image/jpeg", _jpeg),
    (b"\x89PNG\r\n\x1a\n", "image/png", _png),
    (b"GIF8", "image/gif", _gif),
    (b"BM", "image/bmp", _bmp),
)
