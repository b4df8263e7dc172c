"""Uploaded pictures as files that are counted and passed on, never opened as images here."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llava_core.config import ImageLimits, RequestLimits
from llava_core.errors import BadImage, BadRequest
from llava_core.types import ImageFile
from serve.page.examples import Example
from serve.page.session import Picture
from serve.store.strip import stripped


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
        # Whoever knows a path may fetch the file, so a kept picture lies where nobody can guess.
        self._kept = uploads / f"kept-{secrets.token_urlsafe(16)}"

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
        wanted = self._wanted(pictures)
        return {path: await asyncio.to_thread(_data_url, picture) for path, picture in wanted.items()}

    async def images(self, pictures: Iterable[Picture]) -> dict[str, ImageFile]:
        """The same for a request."""
        wanted = self._wanted(pictures)
        return {path: await asyncio.to_thread(_file, picture) for path, picture in wanted.items()}

    def _wanted(self, pictures: Iterable[Picture]) -> dict[str, Picture]:
        wanted = {picture.path: picture for picture in pictures}
        encoded = sum(picture.size for picture in wanted.values()) * 4 // 3
        if encoded > self._request_limits.max_body_bytes:
            raise BadRequest(
                f"the pictures of this chat are {_megabytes(encoded)} together and one request carries at most "
                f"{_megabytes(self._request_limits.max_body_bytes)}; start a new chat or use smaller pictures"
            )
        return wanted

    def example(self, file: str) -> Picture | None:
        """The example's picture, if there still is one of that name."""
        found = self._examples.get(file)
        try:
            return _picture(found.path, _short(found.title), found) if found else None
        except OSError:
            return None

    def placed(self, sha256: str, name: str, mime: str, size: int) -> Picture:
        """A picture out of the store, with the file that `put_back` is to make for it."""
        path = self._kept / f"{sha256[:24]}{mimetypes.guess_extension(mime) or ''}"
        return Picture(name, str(path), _file_url(path), mime, size)

    def take_in(self, name: str, data: bytes) -> Picture:
        """A picture out of a file that a person brought along. Raises BadImage for what is none."""
        found = stripped(data)
        if found is None:
            raise BadImage(f"the picture {_short(name)!r} in this file is none that can be read")
        if len(found[0]) > self.limits.max_bytes:
            raise BadImage(
                f"the picture {_short(name)!r} is {_megabytes(len(found[0]))}, larger than the "
                f"{_megabytes(self.limits.max_bytes)} allowed"
            )
        data, mime = found
        picture = self.placed(hashlib.sha256(data).hexdigest(), _short(name), mime, len(data))
        self.put_back(picture.path, data)
        return picture

    def put_back(self, path: str, data: bytes) -> None:
        """Write a file that is to be there; nobody sees half of it."""
        target = self._uploaded_place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        part.write_bytes(data)
        os.replace(part, target)

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
        return _picture(path, name, example)

    def _uploaded(self, claimed: str) -> Path:
        path = self._uploaded_place(claimed)
        if not path.is_file():
            raise BadImage("a picture did not arrive on the server; attach it again")
        return path

    def _uploaded_place(self, claimed: str) -> Path:
        path = Path(claimed).resolve()
        if not path.is_relative_to(self._uploads.resolve()):
            raise BadImage("a picture did not arrive on the server; attach it again")
        return path


def _picture(path: Path, name: str, example: Example | None) -> Picture:
    url = f"examples/{quote(example.file)}" if example else _file_url(path)
    return Picture(name, str(path), url, _mime(path), path.stat().st_size, example.file if example else "")


def _file_url(path: Path) -> str:
    return f"gradio_api/file={quote(str(path))}"


def _file(picture: Picture) -> ImageFile:
    path = Path(picture.path)
    try:
        return ImageFile(path, picture.mime, path.stat().st_size)
    except OSError:
        raise _gone(picture) from None


def _data_url(picture: Picture) -> str:
    try:
        return _file(picture).url
    except OSError:
        raise _gone(picture) from None


def _gone(picture: Picture) -> BadImage:
    return BadImage(f"the picture {picture.name!r} is no longer on the server; attach it again")


def _mime(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _megabytes(size: int) -> str:
    return f"{size / (1024 * 1024):.1f} MB"


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:60]}…{name[-16:]}"
