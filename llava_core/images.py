"""Image parts of a request to safe RGB pictures: data URLs read, limits held, decoding outside this process."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

from PIL import Image

from llava_core.config import ImageLimits
from llava_core.errors import BadImage, EngineFailure
from llava_core.image_decode import content_name, decode_image, too_many_bytes
from llava_core.image_fetch import fetch_image
from llava_core.image_process import DecoderProcesses
from llava_core.types import ImagePart

__all__ = ["ImageLoader", "content_name", "decode_image", "read_data_url", "read_image_file", "to_data_url"]

Fetch = Callable[[str, ImageLimits], Awaitable[bytes]]

_MIME = {
    "a PNG": "image/png",
    "a JPEG": "image/jpeg",
    "a WebP": "image/webp",
    "a GIF": "image/gif",
    "a BMP": "image/bmp",
}


def read_data_url(url: str, limits: ImageLimits) -> bytes:
    """The bytes inside a `data:` URL, base64 or percent-encoded. Raises BadImage; pixels are not looked at."""
    header, comma, body = url.partition(",")
    if header[:5].lower() != "data:" or not comma:
        raise BadImage("this image URL is no data: URL; send data:image/png;base64,... with the picture's bytes")
    # Refused before any copy is made: a byte takes three characters at most where it is percent-encoded, and in
    # base64, with its line breaks, hardly more than four for three bytes.
    longest = limits.max_bytes * 3 if "%" in body else limits.max_bytes * 1.4
    if len(body) > longest + 64:
        raise too_many_bytes(None, limits)
    data = unquote_to_bytes(body) if "%" in body else body.encode("utf-8", "replace")
    if header.lower().replace(" ", "").endswith(";base64"):
        data = re.sub(rb"\s+", b"", data).rstrip(b"=")
        try:
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error as cause:
            raise BadImage("the base64 text of this data: URL is not valid; encode the picture's bytes anew") from cause
    if len(data) > limits.max_bytes:
        raise too_many_bytes(len(data), limits)
    return data


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
        raise BadImage(f"cannot read {path.name}: {cause.strerror or cause}; check the name and try again") from cause
    if len(data) > limits.max_bytes:
        raise too_many_bytes(None, limits)
    return data


class ImageLoader:
    """Loads the pictures of requests for one engine; at most `decode_processes` of them at a time."""

    def __init__(self, limits: ImageLimits, *, fetch: Fetch = fetch_image) -> None:
        self._limits = limits
        self._fetch = fetch
        self._decoders = DecoderProcesses(limits)
        self._closed = False
        self._threads = ThreadPoolExecutor(limits.decode_processes, thread_name_prefix="decode")

    async def load(self, images: Sequence[ImagePart], *, skip: Collection[int] = ()) -> list[Image.Image]:
        """RGB pictures in the order given, without those at the places `skip`, which the caller has from before.
        Raises BadImage, saying which picture where there are several."""
        limits = self._limits
        if len(images) > limits.max_images:
            raise BadImage(
                f"this chat has {len(images)} pictures; the limit is {limits.max_images}; "
                "leave some out or start a new chat",
                param="messages",
            )
        kept = min(limits.kept_pixels, limits.kept_pixels_in_all >> max(len(images) - 1, 0).bit_length())
        loaded: list[Image.Image] = []
        # One after the other, so that a chat of many pictures takes one decoder from the others, not all.
        for number, image in enumerate(images, start=1):
            if number - 1 in skip:
                continue
            try:
                loaded.append(await self._load(image.url, kept))
            except BadImage as error:
                which = f"picture {number} of {len(images)}: " if len(images) > 1 else ""
                raise BadImage(which + error.message, param="messages") from error
        return loaded

    async def aclose(self) -> None:
        """End the decoding processes; what is being decoded fails with EngineFailure, and so does a later `load`."""
        self._closed = True
        await asyncio.to_thread(self._decoders.close)
        self._threads.shutdown(wait=False)

    async def _load(self, url: str, kept: int) -> Image.Image:
        scheme = url[:16].partition(":")[0].lower()
        if scheme in ("http", "https"):
            data = await self._fetch(url, self._limits)
            return await self._in_thread(lambda: self._decoders.decode(data, kept_pixels=kept))
        if scheme != "data":
            raise BadImage("an image URL must start with data: (or http(s): for hosts this worker may fetch from)")
        return await self._in_thread(
            lambda: self._decoders.decode(read_data_url(url, self._limits), kept_pixels=kept),
        )

    async def _in_thread(self, job: Callable[[], Image.Image]) -> Image.Image:
        if self._closed:
            raise EngineFailure("this engine has been stopped; ask another worker")
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)
