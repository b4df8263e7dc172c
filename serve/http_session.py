"""HTTP connections that requests share: opened when the first needs one, kept for those that follow soon."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp

from serve.request_body import RequestBody

MAX_CONNECTIONS = 1000
# Shorter than the servers', so that a connection is never used at the moment the other side drops it.
KEEPALIVE_S = 2.0
_LARGE_BYTES = 512 * 1024
_LAST_BYTES_S = 0.05

HTTP_ERRORS = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError)
"""What a connection can fail with. TimeoutError, which is among them, also ends a wait of the caller's own."""


class HttpSession:
    """One per event loop. Waits for answers are the caller's to bound; only connecting has a limit here."""

    def __init__(
        self, *, connect_s: float, headers: Mapping[str, str] | None = None, connections: int = MAX_CONNECTIONS
    ) -> None:
        self._connect_s = connect_s
        self._headers = headers
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self,
        method: str,
        url: str,
        body: bytes | RequestBody | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        limit_s: float | None = None,
    ) -> aiohttp.ClientResponse:
        """The answer's head, its body still to be read; `limit_s` is for both. Close it. Raises HTTP_ERRORS."""
        if isinstance(body, bytes) and len(body) > _LARGE_BYTES:
            body = RequestBody((body,))
        if isinstance(body, RequestBody):
            headers = {**(headers or {}), "Content-Length": str(body.size)}
        while True:
            attempt = _Attempt()
            try:
                return await self._opened().request(
                    method,
                    url,
                    data=body.pieces() if isinstance(body, RequestBody) else body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=limit_s, connect=self._connect_s),
                    trace_request_ctx=attempt,
                )
            except TimeoutError:
                raise
            except aiohttp.ClientConnectionError:
                # The other side had closed a connection that was kept; it is told of nothing on a new one.
                if not attempt.reused:
                    raise

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_reuseconn.append(_note_reuse)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                trace_configs=[tracing],
            )
        return self._session


async def read_piece(answer: aiohttp.ClientResponse) -> bytes:
    """What has come of the body, or the next that comes; b"" at its end. Raises HTTP_ERRORS."""
    content = answer.content
    failure = content.exception()
    if failure is None:
        return await content.readany()
    # What came before the connection broke off is still there; aiohttp itself would not hand it out any more.
    content.set_exception(None)  # pyright: ignore[reportArgumentType]
    rest = content.read_nowait()
    content.set_exception(failure)
    if not rest:
        raise failure
    return rest


async def let_go(answer: aiohttp.ClientResponse) -> None:
    """After the last word: what little may follow is read, so that the connection can be used again."""
    if not answer.content.at_eof():
        with suppress(*HTTP_ERRORS):
            async with asyncio.timeout(_LAST_BYTES_S):
                await answer.content.readany()
    answer.close()


@dataclass
class _Attempt:
    reused: bool = False


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, event: object) -> None:
    context.trace_request_ctx.reused = True
