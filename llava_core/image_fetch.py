"""Fetches pictures from the few web hosts a worker was told to trust, and never from a private address.

The address is looked up once, checked, and the connection made to that very address, so that a name cannot answer
differently between check and use. Redirects are followed by hand and pass the same checks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

import httpx

from llava_core.config import ImageLimits
from llava_core.errors import BadImage
from llava_core.image_decode import too_many_bytes

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host name and port to its addresses."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


async def fetch_image(
    url: str, limits: ImageLimits, *, resolve: Resolve = resolve, transport: httpx.AsyncBaseTransport | None = None
) -> bytes:
    """The bytes behind an http(s) URL. Raises BadImage for anything not allowed, too large or too slow."""
    host = _host(url)
    try:
        async with (
            asyncio.timeout(limits.fetch_timeout_s),
            httpx.AsyncClient(trust_env=False, transport=transport, timeout=limits.fetch_timeout_s) as client,
        ):
            target = url
            for _ in range(limits.max_redirects + 1):
                address = await _checked(target, limits, resolve)
                found = await _get(client, httpx.URL(target), address, limits)
                if isinstance(found, bytes):
                    return found
                target = found
    except (TimeoutError, httpx.TimeoutException) as cause:
        raise BadImage(
            f"fetching the picture from {host} took more than {limits.fetch_timeout_s:g} s; send it as a data: URL"
        ) from cause
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as cause:
        raise BadImage(f"cannot fetch the picture from {host}; send it as a data: URL") from cause
    raise BadImage(f"{host} redirects more than {limits.max_redirects} times; send the picture as a data: URL")


def is_public(address: str) -> bool:
    """Whether an address lies on the open internet, seen through IPv6's ways of writing IPv4."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if inner := ip.ipv4_mapped or ip.sixtofour:
            return is_public(str(inner))
        if ip.teredo or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


async def _checked(url: str, limits: ImageLimits, resolve: Resolve) -> str:
    """The address to connect to, after every check on the URL and on all the addresses of its host."""
    try:
        parsed = httpx.URL(url)
        scheme, host, port = parsed.scheme, parsed.host, parsed.port
    except (httpx.InvalidURL, ValueError) as cause:
        raise BadImage("this image URL is not valid; send the picture as a data: URL") from cause
    if scheme not in ("http", "https") or not host or parsed.userinfo:
        raise BadImage("an image URL must be http(s)://HOST/PATH without a user name; or send a data: URL")
    if not _allowed(host, port, limits.allow_hosts):
        known = ", ".join(limits.allow_hosts) or "none"
        raise BadImage(
            f"this worker fetches no pictures from {_host(url)} (allowed hosts: {known}); send the picture as a "
            "data: URL, or start the worker with --allow-image-host"
        )
    addresses = await resolve(host, port or (443 if scheme == "https" else 80))
    if not addresses or not all(is_public(address) for address in addresses):
        raise BadImage(f"{host} has an address that is not public, so nothing is fetched; send a data: URL")
    return addresses[0]


def _allowed(host: str, port: int | None, allow_hosts: tuple[str, ...]) -> bool:
    """Exact names only. An entry HOST allows the standard ports, HOST:PORT that port."""
    host = host.rstrip(".").lower()
    for entry in allow_hosts:
        name, _, wanted = entry.lower().partition(":") if entry.count(":") == 1 else (entry.lower(), "", "")
        if name.rstrip(".") == host and (str(port or "") == wanted if wanted else port is None):
            return True
    return False


async def _get(client: httpx.AsyncClient, url: httpx.URL, address: str, limits: ImageLimits) -> bytes | str:
    """The body, or where a redirect points to."""
    request = client.build_request(
        "GET",
        url.copy_with(host=address),
        # No compression: a small answer must not unpack into a large one.
        headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
        extensions={"sni_hostname": url.host},
    )
    response = await client.send(request, stream=True)
    try:
        if response.has_redirect_location:
            return str(url.join(response.headers["location"]))
        if response.status_code != 200:
            raise BadImage(f"{url.host} answered {response.status_code} instead of the picture; send a data: URL")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > limits.max_bytes:
                raise too_many_bytes(None, limits)
        return bytes(body)
    finally:
        await response.aclose()


def _host(url: str) -> str:
    """The host for a message; an image URL may be long and hold secrets."""
    try:
        return httpx.URL(url).host or "there"
    except (httpx.InvalidURL, ValueError):
        return "there"
