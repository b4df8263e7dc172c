"""Uploaded pictures as files that are counted and passed on, never opened as images here."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llava_core.config import ImageLimits, RequestLimits
from llava_core.errors import BadImage, BadRequest
from serve.page.examples import Example
from serve.page.session import Picture


class PictureDesk:
    """Takes in what the browser says it uploaded and gives out data URLs. Only files below `uploads` are read."""

    def __init__(
        self,
        uploads: Path,
        examples: tuple[Example, ...] = (),
        limits: ImageLimits | None = None,
        request_limits: RequestLimits | None = None,
    ) -> None:
        self.limits = limits or ImageLimits()
        self._request_limits = request_limits or RequestLimits()
        self._uploads = uploads
        self._examples = {example.file: example for example in examples}

    async def accept(self, claims: Iterable[Mapping[str, Any]]) -> tuple[Picture, ...]:
        """The pictures of one question. Raises BadImage for one that is too large or not there."""
        listed = list(claims)
        if len(listed) > self.limits.max_images:
            raise BadImage(
                f"{len(listed)} pictures are more than one chat may hold ({self.limits.max_images}); send fewer"
            )
        return tuple([await asyncio.to_thread(self._accept, claim) for claim in listed])

    async def data_urls(self, pictures: Iterable[Picture]) -> dict[str, str]:
        """Each picture's bytes as a data URL, by path. Raises BadImage where a file has gone, BadRequest where
        all of them together are more than a request may carry."""
        wanted = {picture.path: picture for picture in pictures}
        encoded = sum(picture.size for picture in wanted.values()) * 4 // 3
        if encoded > self._request_limits.max_body_bytes:
            raise BadRequest(
                f"the pictures of this chat are {_megabytes(encoded)} together and one request carries at most "
                f"{_megabytes(self._request_limits.max_body_bytes)}; start a new chat or use smaller pictures"
            )
        return {path: await asyncio.to_thread(_data_url, picture) for path, picture in wanted.items()}

    def _accept(self, claim: Mapping[str, Any]) -> Picture:
        example = self._examples.get(str(claim.get("example", "")))
        path = example.path if example else self._uploaded(str(claim.get("path", "")))
        name = _short(example.title if example else str(claim.get("name") or path.name))
        try:
            size = path.stat().st_size
        except OSError:
            raise BadImage(f"the picture {name!r} is no longer on the server; attach it again") from None
        if size > self.limits.max_bytes:
            raise BadImage(
                f"the picture {name!r} is {_megabytes(size)}, larger than the {_megabytes(self.limits.max_bytes)} "
                "allowed; make it smaller and attach it again"
            )
        if size == 0:
            raise BadImage(f"the picture {name!r} is empty; attach it again")
        url = f"examples/{quote(example.file)}" if example else f"gradio_api/file={quote(str(path))}"
        return Picture(name, str(path), url, _mime(path), size, example.file if example else "")

    def _uploaded(self, claimed: str) -> Path:
        path = Path(claimed).resolve()
        if not path.is_relative_to(self._uploads.resolve()) or not path.is_file():
            raise BadImage("a picture did not arrive on the server; attach it again")
        return path


def _data_url(picture: Picture) -> str:
    try:
        data = Path(picture.path).read_bytes()
    except OSError:
        raise BadImage(f"the picture {picture.name!r} is no longer on the server; attach it again") from None
    return f"data:{picture.mime};base64,{base64.b64encode(data).decode('ascii')}"


def _mime(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _megabytes(size: int) -> str:
    return f"{size / (1024 * 1024):.1f} MB"


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:60]}…{name[-16:]}"
