"""Who may pass: a path asks for nothing, for an API key or for the control plane's token; an unknown one for that."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from llava_core.errors import Forbidden, Unauthorized
from serve.credentials import is_loopback
from serve.key_ring import KeyRing

Level = Literal["open", "key", "control"]
CONTROL = "\0control"
"""The name of whoever shows the token; no key can have it."""

_SAFE = ("GET", "HEAD", "OPTIONS")
_OPEN = ("/health/live", "/health/ready")


@dataclass(frozen=True)
class Gate:
    """Stands before a server. Without a `token` the control plane asks nobody, without `keys` the API does not.
    `api` is what the paths of the API ask for: a worker's are for our own processes. A `local` server takes no request
    that names it otherwise than this machine: a stranger's web page can have its own name lead here."""

    token: str | None = None
    keys: KeyRing | None = None
    api: Level = "key"
    local: bool = False

    def level(self, path: str) -> Level:
        if path in _OPEN:
            return "open"
        return self.api if path.startswith("/v1/") or path == "/metrics" else "control"

    def admit(self, scope: Scope) -> str:
        """The caller's name, "" where nobody was asked. Raises Unauthorized without a valid credential, Forbidden with
        one that opens something else."""
        level, headers = self.level(scope["path"]), Headers(scope=scope)
        shown = _credential(headers.getlist("authorization"))
        check_origin(scope, headers)
        if shown is not None and self.token is not None and hmac.compare_digest(shown.encode(), self.token.encode()):
            return CONTROL
        name = self.keys.name_of(shown) if shown is not None and self.keys is not None else None
        if level == "open":
            return name or ""
        if level == "key":
            if name is not None:
                return name
            if self.keys is None or not self.keys.asks:
                if self.local:
                    check_name(headers)
                return ""
            raise Unauthorized("the API asks for a key; send one as Authorization: Bearer KEY")
        if self.token is None:
            return name or ""
        if name is not None:
            raise Forbidden("an API key does not open this; it belongs to the control plane")
        raise Unauthorized("this belongs to the control plane, which asks for its token as Authorization: Bearer TOKEN")


def check_origin(scope: Scope, headers: Headers) -> None:
    """Raise Forbidden for what changes something and comes from a web page of another origin. Browsers say where a
    request comes from; nobody else does."""
    if scope["method"] in _SAFE:
        return
    origin = headers.get("origin")
    try:
        own = origin is None or urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        own = False
    if not own or headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
        raise Forbidden("web pages of another origin may not send this")


def check_name(headers: Headers) -> None:
    """Raise Forbidden for a request to a name that is not this machine's own."""
    if not is_loopback(_host(headers)):
        raise Forbidden(f"this server is for its own machine, as localhost, not as {_host(headers)[:100]!r}")


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _credential(headers: Sequence[str]) -> str | None:
    """What stands behind "Bearer"; two headers are none."""
    scheme, _, value = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return value.strip() if scheme.lower() == "bearer" and value.strip() else None
