"""Who may ask the page for what: the addresses it really needs, its own files only, bodies
no larger than there is use for, and nothing for other origins."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_core.config import ImageLimits, ServerLimits, StoreLimits
from llava_core.errors import Forbidden, Unauthorized
from serve.error_handlers import http_error_response
from serve.gate import Gate, check_name, check_origin
from serve.http_frame import Direct, HttpFrame
from serve.page.headers import SafeHeaders
from serve.page.uploads import Uploads

FILES = "/gradio_api/file="

# What the page, `gradio_client` and the shared chats ask for. Gradio has more: it forwards requests to other hosts,
# streams media, shows what is monitored, lets programs be edited. None of that is used here, so none of it is there.
_KNOWN = re.compile(
    r"/|/(config|login|logout|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d{1,4})?|health/live)/?"
    r"|/(assets|static|svelte|examples)/.*|/shared/[^/]*(/\d{1,9})?|/live/(act|follow|inspect)"
    r"|/gradio_api/(info|openapi\.json|app_id|user|token|login_check|theme\.css|startup-events|heartbeat/[^/]*"
    r"|queue/(join|data)|component_server|upload|upload_progress|cancel|reset|((call(/v2)?|api|run)/[^/]+(/[^/]*)?))/?"
)
# Where bodies may be large. Gradio reads some of them before it asks who is logged in.
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_LARGE = re.compile(r"/gradio_api/(queue/join|component_server|(call(/v2)?|api|run)/.*)/?")
UPLOAD_BYTES = ImageLimits().max_bytes + 64 * 1024
"""For one picture, which is what the page and `gradio_client` send at a time."""
LARGE_BYTES = 2 * StoreLimits().max_import_bytes
"""For chats that are brought in, which are text in text, and for questions of programs, with pictures in them."""
SMALL_BYTES = 2 * 1024 * 1024
"""For all else, in which the longest is a question."""


@dataclass(frozen=True)
class PageGate(Gate):
    """`uploads` is the one folder from which files are handed out. Who is logged in is Gradio's to say, whom
    `login_of` asks before a large body is read: a name, "" where nobody needs one, None for who has none."""

    uploads: Path = Path("uploads")
    login_of: Callable[[Headers], str | None] = lambda _: ""

    def admit(self, scope: Scope) -> str:
        path, headers = str(scope["path"]), Headers(scope=scope)
        if self.local:
            check_name(headers)
        check_origin(scope, headers)
        name = self.login_of(headers)
        if path.startswith(FILES):
            self._check_file(path.removeprefix(FILES))
        elif not _KNOWN.fullmatch(path):
            raise Forbidden(f"the page has nothing at {path[:200]!r}")
        elif name is None and (_UPLOAD.fullmatch(path) or _LARGE.fullmatch(path)):
            raise Unauthorized("log in to this page first; reload it", param="login")
        return name or ""

    def _check_file(self, asked: str) -> None:
        place = os.path.normpath(asked)
        if "\0" in asked or not Path(place).is_relative_to(os.path.normpath(self.uploads.absolute())):
            raise Forbidden("only pictures that were uploaded here are handed out")


class PageFrame(HttpFrame):
    """Stands around Gradio's app, outside its own middleware, which would let in pages of other origins, and takes
    uploads in its place."""

    def __init__(
        self, app: ASGIApp, uploads: Uploads, *, local: bool, login_of: Callable[[Headers], str | None] = lambda _: ""
    ) -> None:
        gate = PageGate(local=local, uploads=uploads.folder, login_of=login_of)

        async def taken_apart(scope: Scope, receive: Receive, send: Send) -> None:
            answering = app
            if scope["type"] == "http":
                method, path = scope["method"], scope["path"]
                if method == "POST" and _UPLOAD.fullmatch(path):
                    answering = Direct(uploads.take)
                elif path == "/":
                    send = uploads.introduced(scope, send)
                elif path.startswith(FILES) and not uploads.may_read(Request(scope), path.removeprefix(FILES)):
                    gone = HTTPException(404, "there is no such picture, or another browser sent it; attach it again")
                    answering = http_error_response(method, path, gone)
            await answering(scope, receive, send)

        super().__init__(SafeHeaders(taken_apart), UPLOAD_BYTES, ServerLimits(), gate=gate)

    def most_at(self, path: str) -> int:
        if _UPLOAD.fullmatch(path):
            return UPLOAD_BYTES
        return LARGE_BYTES if _LARGE.fullmatch(path) else SMALL_BYTES
