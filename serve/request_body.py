"""The body of a request to a worker: text as it is, and pictures that become base64 while they are sent.

So megabytes of pictures need not be in memory, let alone several times over in longer forms.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

import pybase64

from llava_core.chat_protocol import write_call
from llava_core.errors import BadImage
from llava_core.types import ImageFile, ImagePart, Message, Request

_PIECE_BYTES = 72 * 1024
"""Written in one step, in which nothing else goes on; of a picture a third more is. A multiple of three, so that the
pieces' base64 is that of the whole, and so small that the C library reuses the memory: for larger ones the kernel would
clear new pages every time."""
_PIECES_AT_ONCE = 24
"""Read in another thread."""
_LARGE_CHARS = 512 * 1024


@dataclass(frozen=True)
class RequestBody:
    """Can be sent any number of times."""

    parts: tuple[bytes | ImageFile, ...]

    @property
    def size(self) -> int:
        return sum(len(part) if isinstance(part, bytes) else _encoded_size(part) for part in self.parts)

    async def pieces(self) -> AsyncGenerator[bytes | memoryview]:
        """Raises BadImage where a picture's file is not what it was."""
        for part in self.parts:
            if isinstance(part, bytes):
                for begin in range(0, len(part), _PIECE_BYTES):
                    yield memoryview(part)[begin : begin + _PIECE_BYTES]
                    await asyncio.sleep(0)
                continue
            yield part.url_head.encode("utf-8")
            for begin in range(0, part.size, _PIECES_AT_ONCE * _PIECE_BYTES):
                for piece in await asyncio.to_thread(_encoded, part, begin):
                    yield piece
                    await asyncio.sleep(0)


async def request_body(request: Request) -> bytes | RequestBody:
    """Raises BadRequest for a chat that cannot be written down."""
    if not any(isinstance(image, ImageFile) for image in request.images):
        if sum(len(image.url) for image in request.images) < _LARGE_CHARS:
            return write_call(request)
        return await asyncio.to_thread(write_call, request)
    # Written with a word in the place of each picture that nobody can have put into the chat.
    stand_in = ImagePart(f"picture-{secrets.token_hex(16)}")
    pictures: list[ImageFile] = []

    def without(message: Message) -> Message:
        parts = message.parts
        pictures.extend(part for part in parts if isinstance(part, ImageFile))
        return replace(message, parts=tuple(stand_in if isinstance(part, ImageFile) else part for part in parts))

    written = write_call(replace(request, messages=tuple(map(without, request.messages))))
    first, *rest = written.split(stand_in.url.encode("ascii"))
    parts: list[bytes | ImageFile] = [first]
    for picture, text in zip(pictures, rest, strict=True):
        parts += [picture, text]
    return RequestBody(tuple(parts))


def _encoded(picture: ImageFile, begin: int) -> list[bytes]:
    """Some of its bytes, as base64."""
    end = min(picture.size, begin + _PIECES_AT_ONCE * _PIECE_BYTES)
    found: list[bytes] = []
    try:
        with picture.path.open("rb", buffering=0) as file:
            file.seek(begin)
            for at in range(begin, end, _PIECE_BYTES):
                wanted = min(_PIECE_BYTES, end - at)
                if len(raw := file.read(wanted)) != wanted:
                    raise EOFError
                found.append(pybase64.b64encode(raw))
    except (OSError, EOFError):
        raise BadImage("a picture of this chat is no longer on the server; attach it again") from None
    return found


def _encoded_size(picture: ImageFile) -> int:
    return len(picture.url_head.encode("utf-8")) + (picture.size + 2) // 3 * 4
