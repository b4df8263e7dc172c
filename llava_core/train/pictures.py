"""The pictures of samples: read under the limits that serving has, prepared by the code that serves."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from PIL import Image

from llava_core.config import ImageLimits
from llava_core.errors import BadImage
from llava_core.image_decode import check_size, decode_image
from llava_core.train.records import BadSample, Picture

LIMITS = ImageLimits()


def picture_bytes(picture: Picture) -> bytes:
    """Raises BadSample when it is not there."""
    if isinstance(picture, bytes):
        return picture
    try:
        return picture.read_bytes()
    except FileNotFoundError as cause:
        raise BadSample(f"its picture {_named(picture)} is not there") from cause
    except OSError as cause:
        raise BadSample(f"its picture {str(picture)!r} cannot be read: {cause.strerror}") from cause


def read_picture(picture: Picture) -> Image.Image:
    """Raises BadSample when it is not there or no picture."""
    try:
        return decode_image(picture_bytes(picture), LIMITS)
    except BadImage as cause:
        raise BadSample(f"its picture {_named(picture)}: {cause.message}") from cause


def picture_size(picture: Picture) -> tuple[int, int]:
    """Width and height as it will be decoded, from its header alone. Raises BadSample."""
    try:
        source: Any = picture if isinstance(picture, Path) else io.BytesIO(picture)
        with Image.open(source) as opened:
            width, height = opened.size
            if opened.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # lies on its side
                width, height = height, width
        check_size((width, height), LIMITS)
        factor = min(1.0, math.sqrt(LIMITS.kept_pixels / (width * height)))  # as decoding scales it down
    except FileNotFoundError as cause:
        raise BadSample(f"its picture {_named(picture)} is not there") from cause
    except BadImage as cause:
        raise BadSample(f"its picture {_named(picture)}: {cause.message}") from cause
    except Exception as cause:
        raise BadSample(f"its picture {_named(picture)} is no picture that can be read") from cause
    return (width, height) if factor == 1 else (max(1, int(width * factor)), max(1, int(height * factor)))


def _named(picture: Picture) -> str:
    return repr(str(picture)) if isinstance(picture, Path) else "(bytes)"
