"""Image parts of a request to safe RGB pictures: data URLs read, limits held, decoding off the event loop."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from PIL import Image

from llava_core.config import ImageLimits
from llava_core.errors import BadImage, LlavaError
from llava_core.image_decode import content_name, decode_image, too_many_bytes
from llava_core.types import ImagePart

__all__ = ["ImageLoader", "content_name", "decode_image", "read_data_url", "read_image_file", "to_data_url"]

_MIME = {"a PNG": "image/png", "a JPEG": "image/jpeg", "a WebP": "image/webp", "a GIF": "image/gif"}


def read_data_url(url: str, limits: ImageLimits) -> bytes:
    """The bytes inside a `data:` URL, base64 or percent-encoded. Raises BadImage; pixels are not looked at."""
    header, comma, body = url.partition(",")
    if not header[:5].lower() == "data:" or not comma:
        raise BadImage("this image URL is no data: URL; send data:image/png;base64,... with the picture's bytes")
    if len(body) > limits.max_bytes * 2:
        # Base64 is a third longer than what it holds; do not spend memory to learn the exact size.
        raise too_many_bytes(None, limits)
    if not header.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(re.sub(r"\s+|%0[aAdD]", "", body), validate=True)
    except (binascii.Error, ValueError) as cause:
        raise BadImage("the base64 text of this picture's data: URL is not valid; encode its bytes again") from cause


def to_data_url(data: bytes) -> str:
    """The `data:` URL of a picture's bytes, typed by what they are."""
    mime = _MIME.get(content_name(data), "application/octet-stream")
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def read_image_file(path: Path, limits: ImageLimits) -> bytes:
    """The bytes of a picture file, at most as many as are allowed. Raises BadImage."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except OSError as cause:
        raise BadImage(f"cannot read {path.name}: {cause.strerror or cause}") from cause
    if len(data) > limits.max_bytes:
        raise too_many_bytes(None, limits)
    return data


class ImageLoader:
    """Loads the pictures of requests for one engine."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    async def load(self, images: Sequence[ImagePart]) -> list[Image.Image]:
        """RGB pictures in the order given. Raises BadImage, naming which picture it was."""
        limits = self._limits
        if len(images) > limits.max_images:
            raise BadImage(
                f"this chat has {len(images)} pictures; the limit is {limits.max_images}; leave some out or start anew"
            )
        loaded: list[Image.Image] = []
        for number, image in enumerate(images, start=1):
            try:
                data = await asyncio.to_thread(read_data_url, image.url, limits)
                loaded.append(await asyncio.to_thread(decode_image, data, limits))
            except LlavaError as error:
                if len(images) > 1:
                    raise BadImage(f"picture {number} of {len(images)}: {error.message}") from error
                raise
        return loaded

    async def aclose(self) -> None:
        """End what was started for decoding."""
