"""Who may ask the page for what: the addresses it really needs, its own files only, bodies
no larger than there is use for, and nothing for other origins."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_core.config import ImageLimits, ServerLimits, StoreLimits
from llava_core.errors import Forbidden, Unauthorized
from serve.error_handlers import http_error_response
from serve.gate import Gate, check_name, check_origin
from serve.http_frame import HttpFrame
from serve.page.headers import SafeHeaders

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
UPLOAD_BYTES = ImageLimits().max_bytes * ImageLimits().max_images
LARGE_BYTES = 2 * StoreLimits().max_import_bytes
"""For chats that are brought in, which are text in text, and for questions of programs, with pictures in them."""
SMALL_BYTES = 2 * 1024 * 1024
"""For all else, in which the longest is a question."""
LEAST_FREE_BYTES = 500 * 1024 * 1024
"""On the disk of the uploads; with less nothing more is taken, so that everything else on it can still be written."""


@dataclass(frozen=True)
class PageGate(Gate):
    """`uploads` is the one folder from which files are handed out. Who is logged in is Gradio's to say, which
    `is_let_in` asks before a large body is read."""

    uploads: Path = Path("uploads")
    is_let_in: Callable[[Headers], bool] = lambda _: True

    def admit(self, scope: Scope) -> str:
        path, headers = str(scope["path"]), Headers(scope=scope)
        if self.local:
            check_name(headers)
        check_origin(scope, headers)
        if path.startswith(FILES):
            self._check_file(path.removeprefix(FILES))
        elif not _KNOWN.fullmatch(path):
            raise Forbidden(f"the page has nothing at {path[:200]!r}")
        elif (_UPLOAD.fullmatch(path) or _LARGE.fullmatch(path)) and not self.is_let_in(headers):
            raise Unauthorized("log in to this page first; reload it", param="login")
        return ""

    def _check_file(self, asked: str) -> None:
        place = os.path.normpath(asked)
        if "\0" in asked or not Path(place).is_relative_to(os.path.normpath(self.uploads.absolute())):
            raise Forbidden("only pictures that were uploaded here are handed out")


@dataclass(frozen=True)
class _WithSpace:
    """Takes uploads while there is space for them."""

    app: ASGIApp
    uploads: Path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and _UPLOAD.fullmatch(scope["path"]) and self._is_full():
            sentence = "the server's disk is full, so it takes no more pictures; try again later, or tell its operator"
            app = http_error_response(scope["method"], scope["path"], HTTPException(507, sentence))
        await app(scope, receive, send)

    def _is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.uploads).free < LEAST_FREE_BYTES
        except OSError:  # the folder is made with the first upload
            return False


class PageFrame(HttpFrame):
    """Stands around Gradio's app, outside its own middleware, which would let in pages of other origins."""

    def __init__(self, app: ASGIApp, uploads: Path, *, local: bool, is_let_in: Callable[[Headers], bool]) -> None:
        gate = PageGate(local=local, uploads=uploads, is_let_in=is_let_in)
        super().__init__(_WithSpace(SafeHeaders(app), uploads), UPLOAD_BYTES, ServerLimits(), gate=gate)

    def most_at(self, path: str) -> int:
        if _UPLOAD.fullmatch(path):
            return UPLOAD_BYTES
        return LARGE_BYTES if _LARGE.fullmatch(path) else SMALL_BYTES
