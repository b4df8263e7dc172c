"""Bytes of a picture to a plain RGB image, refusing whatever breaks a limit before its pixels are decoded.

`decode_image` blocks and trusts its process with hostile bytes; a server calls it through `images.ImageLoader`,
which does so in a process of its own.
"""

from __future__ import annotations

import io
import math
import warnings

from PIL import ExifTags, Image

from llava_core.config import ImageLimits
from llava_core.errors import BadImage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What browsers show and cameras write. Everything else stays out on purpose: each further decoder in Pillow is
old C code that hostile bytes can reach (TIFF, JPEG 2000, PSD, FITS, EPS run external or rarely tested parsers)."""

_ACCEPTED = "PNG, JPEG, WebP, GIF or BMP"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP_PIXELS = 4_000_000


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The picture upright, opaque on white and in RGB, its first frame if it moves. Raises BadImage."""
    if len(data) > limits.max_bytes:
        raise too_many_bytes(len(data), limits)
    picture = _open(data, limits)
    check_size(picture.size, limits)
    try:
        with picture, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
            orientation = _orientation(picture)
            flat = _flattened(picture)
    except MemoryError as cause:
        raise BadImage("this picture needs more memory to decode than there is; scale it down") from cause
    except Exception as cause:
        # Pillow's decoders raise anything from OSError to struct.error, IndexError and SyntaxError.
        raise _damaged(picture.format or "picture") from cause
    flat = _scaled(flat, limits)
    turn = _TURNS.get(orientation)
    return flat if turn is None else flat.transpose(turn)


def check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Raises BadImage when width times height or their ratio breaks a limit."""
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"this picture is {width} x {height} pixels, so there is nothing to see; send another")
    if width * height > limits.max_pixels:
        raise BadImage(
            f"this picture has {_megapixels(width * height)} megapixels ({width} x {height}); the limit is "
            f"{_megapixels(limits.max_pixels)}; scale it down and send it again"
        )
    if max(size) > limits.max_side_ratio * min(size):
        raise BadImage(
            f"this picture is {width} x {height} pixels; its longer side may be at most {limits.max_side_ratio:g} "
            "times the shorter; crop it and send it again"
        )


def too_many_bytes(size: int | None, limits: ImageLimits) -> BadImage:
    """The error for a file over the limit; `size` None when reading stopped at the limit."""
    found = "is larger than" if size is None else f"has {_mebibytes(size)} MiB;"
    limit = f"{_mebibytes(limits.max_bytes)} MiB"
    sentence = f"{found} the limit of {limit}" if size is None else f"{found} the limit is {limit}"
    return BadImage(f"this picture {sentence}; save it smaller and send it again")


def content_name(data: bytes) -> str:
    """What the first bytes look like, in words for a person: "a PNG", "an SVG drawing", "an HTML page"."""
    for offset, magic, name in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return name
    if data[4:8] == b"ftyp":
        return {b"avif": "an AVIF", b"heic": "a HEIC photo", b"heix": "a HEIC photo", b"mif1": "a HEIF photo"}.get(
            data[8:12], "a video"
        )
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "an HTML page"
    if head.startswith(b"<?xml"):
        return "an XML file"
    if not data:
        return "nothing at all"
    printable = sum(byte >= 32 or byte in b"\t\r\n" for byte in data[:1024])
    return "text" if printable == len(data[:1024]) else "data of an unknown kind"


_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG"),
    (0, b"\xff\xd8\xff", "a JPEG"),
    (8, b"WEBP", "a WebP"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\x00", "a TIFF"),
    (0, b"MM\x00*", "a TIFF"),
    (0, b"II+\x00", "a TIFF"),
    (0, b"MM\x00+", "a TIFF"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"PK\x03\x04", "a ZIP archive or office document"),
    (0, b"\x1f\x8b", "gzip-compressed data"),
    (0, b"\x00\x00\x01\x00", "an icon"),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)
_DECODABLE = frozenset({"a PNG", "a JPEG", "a WebP", "a GIF", "a BMP"})


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header only; Pillow decodes no pixels here."""
    name = content_name(data)
    if name not in _DECODABLE:
        advice = "send a PNG, JPEG, WebP, GIF or BMP"
        raise BadImage(f"this is no picture that can be read: it holds {name}; {advice}")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on and raises at twice that; our own limit follows at once.
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as cause:
        raise BadImage(
            f"this picture has more than {_megapixels(limits.max_pixels)} megapixels, the limit; "
            "scale it down and send it again"
        ) from cause
    except MemoryError as cause:
        raise BadImage("this picture needs more memory to decode than there is; scale it down") from cause
    except Exception as cause:
        raise _damaged(name.split()[-1]) from cause


def _damaged(kind: str) -> BadImage:
    return BadImage(f"this {kind} is damaged or cut off and cannot be decoded; open and save it again, then resend it")


def _orientation(picture: Image.Image) -> int:
    """EXIF's 1 to 8; 1 where the tag is missing or unreadable, since a picture is worth more than its tags."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _flattened(picture: Image.Image) -> Image.Image:
    """RGB, with whatever shows through on white."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _eight_bit(picture)
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    # In strips, because a whole RGBA copy beside its RGB result would be the largest thing in memory.
    flat = Image.new("RGB", picture.size, "white")
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        strip = strip.convert("RGBA")
        flat.paste(strip.convert("RGB"), (0, top), strip.getchannel("A"))
    return flat


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Greys of more than eight bits to "L"; Pillow's own conversion clips instead of scaling.

    Sixteen bits are scaled by their full range, so that a dark picture stays dark. "I" and "F" do not say their
    range: it is taken from the largest value.
    """
    transparency = picture.info.get("transparency")
    wide = picture.convert("I") if picture.mode.startswith("I;16") else picture
    low, high = _extrema(wide)
    if picture.mode == "F" and high <= 1:
        top = 1.0
    elif picture.mode.startswith("I;16") or 255 < high <= 65535:
        top = 65535.0
    else:
        top = max(high, 255.0)
    del low
    scale = 255.0 / top
    grey = wide.point(lambda value: value * scale + 0).convert("L")
    if isinstance(transparency, int):
        mask = wide.point(lambda value: value - transparency)
        return Image.merge("LA", (grey, mask.convert("L").point(lambda value: 255 if value else 0)))
    return grey


def _extrema(picture: Image.Image) -> tuple[float, float]:
    low, high = picture.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return (float(low), float(high)) if math.isfinite(high) else (0.0, 255.0)


def _scaled(picture: Image.Image, limits: ImageLimits) -> Image.Image:
    """No larger than what is kept; no model looks at more, and sixteen such pictures must fit into memory."""
    pixels = picture.width * picture.height
    if pixels <= limits.kept_pixels:
        return picture
    factor = math.sqrt(limits.kept_pixels / pixels)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.1f}".removesuffix(".0")


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")
