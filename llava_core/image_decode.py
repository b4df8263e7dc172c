"""Bytes of a picture to a plain RGB image, refusing whatever breaks a limit before its pixels are decoded.

`decode_image` blocks and trusts its process with hostile bytes; a server calls it through `images.ImageLoader`,
which does so in a process of its own.
"""

from __future__ import annotations

import codecs
import io
import math

# WebP's plugin is imported for its registration: Pillow would import every plugin it has to find it.
from PIL import ExifTags, Image, WebPImagePlugin  # noqa: F401 # pyright: ignore[reportUnusedImport]

from llava_core.config import ImageLimits
from llava_core.errors import BadImage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What browsers show and cameras write (JPEG brings phones' multi-picture files along). The rest stays out on
purpose: every further decoder in Pillow is code that hostile bytes can reach, and most of its advisories are about
formats nobody pastes into a chat (TIFF, JPEG 2000, PSD, FITS, EPS)."""

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


def decode_image(data: bytes, limits: ImageLimits, *, kept_pixels: int | None = None) -> Image.Image:
    """The picture upright, opaque on white and in RGB, its first frame if it moves; scaled down to `kept_pixels`
    (the limits' own by default) if it has more. Raises BadImage."""
    if len(data) > limits.max_bytes:
        raise too_many_bytes(len(data), limits)
    picture = _open(data, limits)
    check_size(picture.size, limits)
    kind = picture.format or "picture"
    try:
        with picture:
            picture.load()
            flat = _flattened(picture)
            turn = _TURNS.get(_orientation(picture))
        del picture  # its pixels are the larger part of the peak
        flat = _scaled(flat, limits.kept_pixels if kept_pixels is None else kept_pixels)
        return flat if turn is None else flat.transpose(turn)
    except MemoryError as cause:
        raise _memory() from cause
    except Exception as cause:
        # Pillow's decoders raise anything from OSError to struct.error, IndexError and SyntaxError.
        raise _damaged(kind) from cause


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
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1024])
    except UnicodeDecodeError:
        return "data of an unknown kind"
    return "text" if all(char.isprintable() or char in "\t\r\n" for char in text) else "data of an unknown kind"


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
        raise BadImage(f"this is {name}, not a picture that can be read; send a PNG, JPEG, WebP, GIF or BMP")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as cause:
        # Pillow's own, higher limit; the warning arrives as an error where a program asks for that.
        raise BadImage(
            f"this picture has more than {_megapixels(limits.max_pixels)} megapixels, the limit; "
            "scale it down and send it again"
        ) from cause
    except MemoryError as cause:
        raise _memory() from cause
    except Exception as cause:
        raise _damaged(name.split()[-1]) from cause


def _memory() -> BadImage:
    return BadImage("this picture needs more memory to decode than it may have; scale it down and send it again")


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
    if picture.mode.startswith("I"):
        return _eight_bit(picture)
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    # In strips, because a whole RGBA copy beside its RGB result would be the largest thing in memory.
    flat = Image.new("RGB", picture.size, "white")
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height))).convert("RGBA")
        flat.paste(strip.convert("RGB"), (0, top), strip.getchannel("A"))
    return flat


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Greys of sixteen bits scaled by their full range, so that a dark picture stays dark; Pillow's own
    conversion would clip them."""
    wide = picture.convert("I")
    grey = wide.point([round(value / 257) for value in range(65536)], "L")
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.paste(255, mask=wide.point([255 * (value == clear) for value in range(65536)], "L"))
    return grey.convert("RGB")


def _scaled(picture: Image.Image, most: int) -> Image.Image:
    pixels = picture.width * picture.height
    if pixels <= most:
        return picture
    factor = math.sqrt(most / pixels)
    size = (max(1, int(picture.width * factor)), max(1, int(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.1f}".removesuffix(".0")


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")
