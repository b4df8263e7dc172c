"""Who may ask the page for what: the addresses it really needs, its own files only, and nothing for other origins."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_core.config import ImageLimits, ServerLimits, StoreLimits
from llava_core.errors import Forbidden
from serve.gate import Gate, check_name, check_origin
from serve.http_frame import HttpFrame
from serve.page.headers import SafeHeaders

FILES = "/gradio_api/file="

# What the page, `gradio_client` and the shared chats ask for. Gradio has more: it forwards requests to other hosts,
# streams media, shows what is monitored, lets programs be edited. None of that is used here, so none of it is there.
_KNOWN = re.compile(
    r"/|/(config|login|logout|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d{1,4})?|health/live)/?"
    r"|/(assets|static|svelte|examples)/.*|/shared/[^/]*(/\d{1,9})?|/live/(act|follow)"
    r"|/gradio_api/(info|openapi\.json|app_id|user|token|login_check|theme\.css|startup-events|heartbeat/[^/]*"
    r"|queue/(join|data)|component_server|upload|upload_progress|cancel|reset|((call(/v2)?|api|run)/[^/]+(/[^/]*)?))/?"
)


@dataclass(frozen=True)
class PageGate(Gate):
    """`uploads` is the one folder from which files are handed out. Who is logged in is Gradio's to ask."""

    uploads: Path = Path("uploads")

    def admit(self, scope: Scope) -> str:
        path, headers = str(scope["path"]), Headers(scope=scope)
        if self.local:
            check_name(headers)
        check_origin(scope, headers)
        if path.startswith(FILES):
            self._check_file(path.removeprefix(FILES))
        elif not _KNOWN.fullmatch(path):
            raise Forbidden(f"the page has nothing at {path[:200]!r}")
        return ""

    def _check_file(self, asked: str) -> None:
        place = os.path.normpath(asked)
        if "\0" in asked or not Path(place).is_relative_to(os.path.normpath(self.uploads.absolute())):
            raise Forbidden("only pictures that were uploaded here are handed out")


class PageFrame:
    """Stands around Gradio's app, outside its own middleware, which would let in pages of other origins."""

    def __init__(self, app: ASGIApp, uploads: Path, *, local: bool) -> None:
        images = ImageLimits()
        most = max(images.max_bytes * images.max_images, 2 * StoreLimits().max_import_bytes)
        limits = ServerLimits(max_control_body_bytes=most)
        self._framed = HttpFrame(SafeHeaders(app), most, limits, gate=PageGate(local=local, uploads=uploads))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._framed(scope, receive, send)
