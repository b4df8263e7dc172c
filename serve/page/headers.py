"""Response headers that keep the page to itself: it may talk to its own server and to nobody else."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio evaluates its templates and inlines its scripts, hence the two unsafe words; the rest is what guards a
# reader from whatever a model or an uploaded file may smuggle in.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)


_FOR_OTHERS = tuple(
    f"access-control-{what}"
    for what in ("allow-origin", "allow-credentials", "allow-methods", "allow-headers", "expose-headers", "max-age")
)

FILE_POLICY = "default-src 'none'; sandbox"
"""For uploaded files, which a browser may open by themselves: an SVG or HTML page among them does nothing."""


class SafeHeaders:
    """Middleware that adds them to every response, and takes away what would let other origins read it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", FILE_POLICY if "/file=" in scope["path"] else POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                for name in _FOR_OTHERS:
                    del headers[name]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
