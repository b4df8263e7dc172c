"""Takes in the pictures that browsers upload: what cameras wrote into them is gone before any file has them, nobody
fills the disk, and whoever else learns of a picture's path is told that there is none."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import secrets
import shutil
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Scope, Send

from llava_core.config import ImageLimits, UploadLimits
from llava_core.errors import BadImage, BadRequest, Overloaded
from serve.quotas import address_of
from serve.store.strip import stripped

log = logging.getLogger(__name__)

COOKIE = "llava-serve-uploads"
_COOKIE_S = 30 * 24 * 3600
_SESSION = re.compile(r"[A-Za-z0-9_-]{22}")
_ODD = re.compile(r"[^\w .()-]")
_NAME_CHARS = 100
_RETRY_S = 3600.0


class Uploads:
    """Answers at the address that Gradio takes uploads at, in Gradio's place, with the files' paths.

    What somebody has here is counted in bytes: by name on a page with a login, else by browser, which a cookie tells
    apart, and by address, since a cookie is easily thrown away.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageLimits | None = None,
        limits: UploadLimits | None = None,
        *,
        originals: bool = False,
        for_all: bool = False,
        address: Callable[[Scope], str] = lambda scope: address_of(scope, 0),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """With `originals` pictures stay as they came. With `for_all` they are for whoever knows their path: frames on
        other sites keep no cookies. `clock` is the one that files are dated by."""
        self.folder = Path(os.path.normpath(folder.absolute()))
        self._secret = secrets.token_bytes(32)
        self._for_all = for_all
        self._images = images or ImageLimits()
        self._limits = limits or UploadLimits()
        self._originals = originals
        self._address = address
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        # Looking through a picture made to take long keeps the interpreter to itself: one at a time.
        self._stripping = asyncio.Lock()

    def may_read(self, http: HttpRequest, path: str) -> bool:
        """Whether the file was uploaded by who asks for it. Pictures out of the store lie in folders that nobody
        guesses."""
        place = Path(os.path.normpath(path))
        if not place.is_relative_to(self.folder) or place == self.folder:
            return False
        folder = place.relative_to(self.folder).parts[0]
        return self._for_all or folder.startswith("kept-") or folder == self._folder_of(*_who(http))

    def check(self, http: HttpRequest, message: Mapping[str, Any]) -> None:
        """Raises BadImage where whoever asks this shows a picture that another browser sent."""
        claims = message.get("pictures")
        for claim in cast("list[Any]", claims) if isinstance(claims, list) else ():
            path = cast("Mapping[str, Any]", claim).get("path") if isinstance(claim, Mapping) else None
            if path and not self.may_read(http, str(path)):
                raise BadImage("a picture did not arrive on the server; attach it again")

    def introduced(self, scope: Scope, send: Send) -> Send:
        """The answer to who opens the page has the cookie by which uploads are known: a browser may send its first
        pictures all at once."""
        http = HttpRequest(scope)
        known = any(_who(http))

        async def introducing(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200 and not known:
                shown = Response()
                _remember(shown, http, secrets.token_urlsafe(16))
                MutableHeaders(scope=message).append("Set-Cookie", shown.headers["set-cookie"])
            await send(message)

        return introducing

    def sweep(self) -> None:
        """Delete what has been here for `keep_s`; what is kept of chats comes back from the store when it is needed."""
        oldest = self._clock() - self._limits.keep_s
        for folder, _, names in os.walk(self.folder):
            for name in names:
                file = Path(folder, name)
                try:
                    if file.stat().st_mtime < oldest:
                        file.unlink()
                except OSError as error:
                    log.warning("an uploaded file could not be deleted: %s", error)
            if folder != str(self.folder):
                try:
                    os.rmdir(folder)
                except OSError:  # there is something in it
                    continue

    async def take(self, http: HttpRequest) -> Response:
        """The answer to an upload. Raises LlavaError or HTTPException for what is not taken."""
        self._check_space()
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise BadRequest("send pictures as a form, with the header Content-Type: multipart/form-data")
        name, session = _who(http)
        if not (name or session):
            session = secrets.token_urlsafe(16)
        folder = self.folder / self._folder_of(name, session)
        most = self._limits
        counted = {f"login {name}": most.session_bytes} if name else {f"session {session}": most.session_bytes}
        if not name:
            counted[f"address {self._address(http.scope)}"] = most.address_bytes
        parser = MultiPartParser(
            http.headers, http.stream(), max_files=self._images.max_images, max_fields=self._images.max_images
        )
        # All in memory: what cameras wrote must not lie in a file, not even in one without a name.
        parser.spool_max_size = self._images.max_bytes + 1
        try:
            form = await parser.parse()
        except MultiPartException:
            raise BadRequest("this upload is no form that can be read, or has too many parts; send it again") from None
        try:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if not files:
                raise BadRequest("this upload's form comes to no end, or has no picture in it; send the picture again")
            paths = [str(await self._keep(file, folder, counted)) for file in files]
        finally:
            await form.close()
        response = JSONResponse(paths)
        if not name:
            _remember(response, http, session)
        return response

    def _folder_of(self, name: str, session: str) -> str:
        return hmac.digest(self._secret, f"{name}/{session}".encode(), "sha256")[:16].hex()

    async def _keep(self, file: UploadFile, folder: Path, counted: dict[str, int]) -> Path:
        name = (
            _ODD.sub("_", Path((file.filename or "").replace("\\", "/")).name).strip(" .")[-_NAME_CHARS:] or "picture"
        )
        if (file.size or 0) > self._images.max_bytes:
            most = self._images.max_bytes // 2**20
            raise HTTPException(413, f"the picture {name!r} is larger than {most} MiB; make it smaller")
        async with self._stripping:
            data = await file.read()
            found = await asyncio.to_thread(stripped, data)
            if found is None:
                raise BadImage(
                    f"{name!r} is no picture that can be looked at here, or a broken one; send PNG, JPEG, WebP, GIF or "
                    "BMP"
                )
            kept = data if self._originals else found[0]
            path = folder / secrets.token_hex(16) / name
            self._count(len(kept), counted)
            try:
                await asyncio.to_thread(_write, path, kept)
            except OSError as error:
                log.warning("an uploaded picture could not be written: %s", error)
                raise HTTPException(507, "the server could not write the picture; tell its operator") from None
        return path

    def _count(self, size: int, counted: dict[str, int]) -> None:
        """Take note of a file that is about to be written. Raises Overloaded where somebody has too much."""
        size, now = max(size, self._limits.least_counted_bytes), self._clock()
        for who, most in counted.items():
            held = self._held.pop(who, None) or _Held()
            self._held[who] = held
            held.forget(until=now - self._limits.keep_s)
            if held.bytes + size > most:
                raise Overloaded(
                    f"{most // 2**20} MiB of pictures were uploaded from here, the most that is taken in "
                    f"{self._limits.keep_s / 3600:.0f} hours; try again later",
                    retry_after=_RETRY_S,
                )
        for who in counted:
            self._held[who].note(now, size)
        # Who is asked about least lately stands first; this call's are fresh, so it ends before them.
        while next(iter(self._held.values())).is_over(now - self._limits.keep_s):
            self._held.popitem(last=False)

    def _check_space(self) -> None:
        try:
            is_full = shutil.disk_usage(self.folder).free < self._limits.least_free_bytes
        except OSError:  # the folder is made with the first upload
            is_full = False
        if is_full:
            sentence = "the server's disk is full, so it takes no more pictures; try again later, or tell its operator"
            raise HTTPException(507, sentence)


@dataclass
class _Held:
    """The files that somebody uploaded of late."""

    bytes: int = 0
    taken: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def note(self, now: float, size: int) -> None:
        self.taken.append((now, size))
        self.bytes += size

    def forget(self, until: float) -> None:
        while self.taken and self.taken[0][0] < until:
            self.bytes -= self.taken.popleft()[1]

    def is_over(self, until: float) -> bool:
        return not self.taken or self.taken[-1][0] < until


def _who(http: HttpRequest) -> tuple[str, str]:
    """The name that somebody logged in by, or else the secret of a browser that uploaded before."""
    name = http.scope.get("caller", "")
    shown = http.cookies.get(COOKIE, "")
    return (name, "") if name else ("", shown if _SESSION.fullmatch(shown) else "")


def _remember(response: Response, http: HttpRequest, session: str) -> None:
    secure = http.url.scheme == "https"
    response.set_cookie(COOKIE, session, _COOKIE_S, secure=secure, httponly=True, samesite="lax")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
