"""Counts what callers ask for, in a time and at once: by their keys, or by their addresses where they have none."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from limits import RateLimitItem
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from starlette.datastructures import Headers
from starlette.types import Scope

from llava_core.errors import BadRequest, MissingDependency, Overloaded
from serve.gate import CONTROL
from serve.quota import Quota

log = logging.getLogger(__name__)

MEMORY = "memory://"
_UNLIMITED = Quota()
_IPV6_PREFIX = 64
"""One customer of a provider has at least as much, so that single addresses would limit nobody."""
_AT_ONCE_RETRY_S = 2.0
_STEP_BACK_S = 1.0
_STORAGE_S = 1.0
"""For the answer of a storage elsewhere; nobody waits longer for being counted."""
_UNCOUNTED_S = 5.0
"""Without asking it again once it failed."""


class Quotas:
    """Belongs to one event loop. `of_key` knows what the holder of a key may, where it is not what all may. Rates are
    counted at `storage`, which several servers may share (redis://HOST:PORT); requests at once by each for itself.

    The address is the connection's; behind `proxies` that each add to X-Forwarded-For, the one that the outermost of
    them saw. What a caller writes there itself stands further left and counts for nothing.
    """

    def __init__(
        self,
        *,
        key: Quota | None = None,
        address: Quota | None = None,
        of_key: Callable[[str], Quota | None] = lambda name: None,
        applies: Callable[[Scope], bool] = lambda scope: True,
        storage: str = MEMORY,
        proxies: int = 0,
    ) -> None:
        self._key, self._address, self._of_key = key or _UNLIMITED, address or _UNLIMITED, of_key
        self._applies = applies
        self._proxies = proxies
        self._storage = _opened(storage)
        self._is_memory = storage == MEMORY
        self._windows = MovingWindowRateLimiter(self._storage)
        self._busy: Counter[str] = Counter()
        self._ahead = time.time() - time.monotonic()
        self._uncounted_until = 0.0
        self.refused = 0

    @asynccontextmanager
    async def place(self, scope: Scope, more: int = 0) -> AsyncGenerator[None]:
        """Around the answer to one request, or around so many `more` of a request that has its first place. Raises
        Overloaded before it, BadRequest for more than there ever is place for."""
        who, said, quota = self._whose(scope)
        if quota == _UNLIMITED:
            yield
            return
        _check_number(more + 1, said, quota)
        places = more or 1
        if quota.at_once is not None and self._busy[who] + places > quota.at_once:
            self.refused += 1
            raise Overloaded(
                f"{said} may have {_count(quota.at_once)} answered at once; try again when one is done",
                retry_after=_AT_ONCE_RETRY_S,
            )
        # Counted before the first wait, so that two cannot take the last place.
        self._busy[who] += places
        try:
            await self._take(who, said, quota, places, whole=more > 0)
            yield
        finally:
            self._busy[who] -= places
            if not self._busy[who]:
                del self._busy[who]

    def address_of(self, scope: Scope) -> str:
        """The caller's, as far as it can be known; of IPv6 the network that one customer has."""
        return address_of(scope, self._proxies)

    def _whose(self, scope: Scope) -> tuple[str, str, Quota]:
        caller = scope.get("caller", "")
        if caller == CONTROL or not self._applies(scope):
            return "", "", _UNLIMITED
        if caller:
            return f"key {caller}", f"the key {caller!r}", self._of_key(caller) or self._key
        address = self.address_of(scope)
        return f"address {address}", "your address", self._address

    async def _take(self, who: str, said: str, quota: Quota, places: int, *, whole: bool) -> None:
        """With `whole` only a window that nothing is left in has room for so many."""
        if time.monotonic() < self._uncounted_until:
            return
        try:
            await self._after_a_step_back()
            # What is refused counts nowhere, so all are asked first; others may still take the last place meanwhile.
            for ask in (self._windows.test, self._windows.hit):
                for window in quota.windows:
                    if not await ask(window, who, cost=places):
                        raise await self._refusal(window, who, said, whole)
        except StorageError as error:
            # Better nobody is counted than nobody served.
            self._uncounted_until = time.monotonic() + _UNCOUNTED_S
            log.warning("rates are not counted for %.0f s: their storage fails (%r)", _UNCOUNTED_S, error.storage_error)

    async def _refusal(self, window: RateLimitItem, who: str, said: str, whole: bool) -> Overloaded:
        reset = (await self._windows.get_window_stats(window, who)).reset_time
        # The first place of a request for several answers counts, too, until then.
        wait = window.get_expiry() + 1 if whole else max(1, math.ceil(reset - time.time()))
        self.refused += 1
        span = window.get_expiry() // window.multiples
        name = window.GRANULARITY.name if window.multiples == 1 else f"{window.multiples * span} seconds"
        return Overloaded(
            f"{said} may send {_count(window.amount)} per {name}; the next one in {wait} s", retry_after=wait
        )

    async def _after_a_step_back(self) -> None:
        """Rates are counted on the calendar's clock. When that is set back, what was counted lies in the future, where
        it would keep people out for as long."""
        ahead = time.time() - time.monotonic()
        if self._is_memory and ahead < self._ahead - _STEP_BACK_S:
            await self._storage.reset()
        self._ahead = ahead


def address_of(scope: Scope, proxies: int) -> str:
    """The caller's, as far as it can be known; of IPv6 the network that one customer has."""
    said = (scope.get("client") or ("unknown", 0))[0]
    if proxies:
        hops = [hop.strip() for line in Headers(scope=scope).getlist("x-forwarded-for") for hop in line.split(",")]
        said = hops[-proxies] if len(hops) >= proxies else said
    try:
        address = ipaddress.ip_address(said.strip("[]"))
    except ValueError:
        return said[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)


def _opened(storage: str) -> Storage:
    options: dict[str, Any] = {"wrap_exceptions": True}
    if storage.startswith("redis"):
        options |= {"implementation": "redispy", "socket_timeout": _STORAGE_S, "socket_connect_timeout": _STORAGE_S}
    try:
        opened = storage_from_string(f"async+{storage}", **options)
    except ConfigurationError as error:
        if "prerequisite" in str(error) or "minimum version" in str(error):
            kind = storage.partition("://")[0]
            raise MissingDependency(f"rates at {kind}:// need a package: pip install redis ({error})") from None
        raise BadRequest(f"{storage!r} is no storage for rates; write redis://HOST:PORT") from None
    assert isinstance(opened, Storage)
    return opened


def _check_number(answers: int, said: str, quota: Quota) -> None:
    """Raise BadRequest for more answers to one request than could ever be given: to come back would not help."""
    most = min([quota.at_once or answers, *(window.amount for window in quota.windows)])
    if answers > most:
        raise BadRequest(f"n={answers} answers count as {_count(answers)}, of which {said} may have {most}", param="n")


def _count(requests: int) -> str:
    return f"{requests} request{'' if requests == 1 else 's'}"
