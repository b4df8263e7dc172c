"""What callers may ask for, as flags of controller, page and launcher."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.quotas import MEMORY

KeyRate = Annotated[
    str | None,
    typer.Option(help="Chats that a key may ask for in a time: 60/minute, or 10/second;1000/day. [default: no limit]"),
]
KeyAtOnce = Annotated[
    int | None, typer.Option(min=1, help="Chats of one key that are answered at once. [default: no limit]")
]
AddressRate = Annotated[
    str | None, typer.Option(help="The same for an address, where nobody shows a key. [default: no limit]")
]
AddressAtOnce = Annotated[
    int | None, typer.Option(min=1, help="Chats from one address that are answered at once. [default: no limit]")
]
_PROXIES = typer.Option(
    min=0, max=10, help="Proxies before this server that add to X-Forwarded-For; 0 believes only connections."
)
_STORAGE = typer.Option(help="Where rates are counted: in memory, or for several servers at redis://HOST:PORT.")
Proxies = Annotated[int, _PROXIES]
Storage = Annotated[str, _STORAGE]
LaunchProxies = Annotated[int | None, _PROXIES]
LaunchStorage = Annotated[str | None, _STORAGE]
IN_MEMORY = MEMORY
