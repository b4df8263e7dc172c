"""Fetching pictures: only named hosts, only public addresses, within bounds, whatever the URL tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from llava_core.config import ImageLimits
from llava_core.errors import BadImage
from llava_core.image_fetch import fetch_image, is_public
from llava_core.images import ImageLoader
from llava_core.types import ImagePart
from tests.picture_bombs import png

PICTURE = png(6, 4)
PUBLIC = "93.184.215.14"
LIMITS = ImageLimits(allow_hosts=("pictures.example", "other.example:8443"))


async def body(data: bytes) -> AsyncIterator[bytes]:
    yield data[:10]
    yield data[10:]


class Web:
    """Names with addresses, and a transport that answers for them and keeps what it was asked."""

    def __init__(self, answer: httpx.Response | dict[str, httpx.Response] | None = None) -> None:
        self.addresses: dict[str, list[str]] = {"pictures.example": [PUBLIC], "other.example": ["2606:2800:21f::1"]}
        self.answer = answer if answer is not None else httpx.Response(200, content=body(PICTURE))
        self.asked: list[httpx.Request] = []
        self.looked_up: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        try:
            return self.addresses[host]
        except KeyError:
            raise OSError("no such name") from None

    async def fetch(self, url: str, limits: ImageLimits = LIMITS) -> bytes:
        def handle(request: httpx.Request) -> httpx.Response:
            self.asked.append(request)
            return self.answer[request.url.path] if isinstance(self.answer, dict) else self.answer

        return await fetch_image(url, limits, resolve=self.resolve, transport=httpx.MockTransport(handle))


async def refusal(url: str, web: Web | None = None, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(BadImage) as caught:
        await (web or Web()).fetch(url, limits)
    return caught.value.message


async def test_a_named_host_is_asked_at_the_address_that_was_checked() -> None:
    web = Web()
    assert await web.fetch("https://pictures.example/cat.png?size=1") == PICTURE
    (request,) = web.asked
    assert request.url == f"https://{PUBLIC}/cat.png?size=1"
    assert request.headers["host"] == "pictures.example"
    assert request.extensions["sni_hostname"] == "pictures.example"
    assert web.looked_up == ["pictures.example"]


async def test_a_port_and_an_ipv6_address_are_used_as_given() -> None:
    web = Web()
    assert await web.fetch("https://other.example:8443/cat.png") == PICTURE
    assert web.asked[0].url == "https://[2606:2800:21f::1]:8443/cat.png"
    assert web.asked[0].headers["host"] == "other.example:8443"


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.example/a.png",
        "http://sub.pictures.example/a.png",
        "http://pictures.example.evil.example/a.png",
        "http://xpictures.example/a.png",
        "http://pictures.example:8080/a.png",
        "http://other.example/a.png",
        "http://127.0.0.1/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://0177.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:169.254.169.254]/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/a.png",
        "http://user@pictures.example/a.png",
        "http://pictures.example@127.0.0.1/a.png",
        "http://127.0.0.1#@pictures.example/",
        "http://127.0.0.1\\@pictures.example/",
        "http:///a.png",
        "http://",
        "http:pictures.example",
        "http://pictures.example\r\nHost: evil/",
        "http://[pictures.example/a.png",
        "http://pictures.example:99999999/a.png",
        "http://\u24c5ictures.evil/",
        "https://pictures。evil/",
        "file:///etc/passwd",
        "gopher://pictures.example/",
    ],
)
async def test_any_other_url_is_refused_without_a_connection_or_lookup(url: str) -> None:
    web = Web()
    assert await refusal(url, web)
    assert web.asked == []
    assert web.looked_up == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.8"],
        ["172.16.3.4"],
        ["192.168.1.1"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["255.255.255.255"],
        ["198.18.0.1"],
        ["::1"],
        ["::"],
        ["fe80::1%eth0"],
        ["fc00::1"],
        ["fec0::1"],
        ["ff02::1"],
        ["::ffff:127.0.0.1"],
        ["::ffff:10.1.2.3"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["2001:0:7f00:1::"],
        ["2001:db8::1"],
        [PUBLIC, "127.0.0.1"],
        [],
        ["nonsense"],
    ],
)
async def test_a_named_host_with_a_private_address_is_refused(addresses: list[str]) -> None:
    web = Web()
    web.addresses["pictures.example"] = addresses
    assert "not public" in await refusal("http://pictures.example/a.png", web)
    assert web.asked == []


async def test_an_allowed_private_address_is_refused_even_then() -> None:
    limits = ImageLimits(allow_hosts=("127.0.0.1", "localhost", "[::1]"))
    web = Web()
    web.addresses |= {"127.0.0.1": ["127.0.0.1"], "localhost": ["127.0.0.1", "::1"], "::1": ["::1"]}
    for url in ("http://127.0.0.1/", "http://localhost/", "http://[::1]/"):
        assert await refusal(url, web, limits)
    assert web.asked == []


def test_public_addresses_are_public() -> None:
    assert all(is_public(address) for address in (PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"))


async def test_redirects_pass_the_same_checks() -> None:
    def to(location: str) -> httpx.Response:
        return httpx.Response(302, headers={"location": location})

    web = Web(
        {"/a": to("/b"), "/b": to("https://other.example:8443/c"), "/c": httpx.Response(200, content=body(PICTURE))}
    )
    assert await web.fetch("https://pictures.example/a") == PICTURE
    assert web.looked_up == ["pictures.example", "pictures.example", "other.example"]
    for target in ("http://127.0.0.1/", "http://evil.example/", "//evil.example/", "file:///etc/passwd", "http://[x/"):
        web = Web({"/a": to(target)})
        assert await refusal("http://pictures.example/a", web)
        assert len(web.asked) == 1
    assert "redirects more than 3 times" in await refusal("http://pictures.example/a", Web({"/a": to("/a")}))


async def test_a_name_that_changes_its_address_between_requests_is_checked_each_time() -> None:
    web = Web({"/a": httpx.Response(302, headers={"location": "/b"}), "/b": httpx.Response(200, content=body(PICTURE))})
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    web.resolve = rebinding
    assert "not public" in await refusal("http://pictures.example/a", web)
    assert len(web.asked) == 1


async def test_an_answer_over_the_limit_is_cut_short() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    limits = ImageLimits(allow_hosts=("pictures.example",), max_bytes=10_000)
    assert "limit" in await refusal("http://pictures.example/a", Web(httpx.Response(200, content=endless())), limits)
    assert sent < 20_000


async def test_a_host_that_never_answers_is_given_up_on() -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    limits = ImageLimits(allow_hosts=("pictures.example",), fetch_timeout_s=0.05)
    said = await refusal("http://pictures.example/a", Web(httpx.Response(200, content=never())), limits)
    assert "more than 0.05 s" in said


async def test_a_host_that_fails_is_named_without_its_secrets() -> None:
    assert "answered 304" in await refusal("http://pictures.example/a", Web(httpx.Response(304)))
    said = await refusal("http://pictures.example/a?token=abc", Web(httpx.Response(403)))
    assert "pictures.example answered 403" in said
    assert "abc" not in said
    web = Web()
    web.addresses.clear()
    assert "cannot fetch the picture from pictures.example" in await refusal("http://pictures.example/a", web)


async def test_a_loader_without_hosts_fetches_nothing_and_says_how() -> None:
    loader = ImageLoader(ImageLimits())
    with pytest.raises(BadImage, match=r"fetches no pictures from pictures\.example.*--allow-image-host"):
        await loader.load([ImagePart("https://pictures.example/a.png")])
    await loader.aclose()


async def test_a_fetched_picture_is_decoded_like_any_other() -> None:
    async def fetch(url: str, limits: ImageLimits) -> bytes:
        return PICTURE if url.endswith("a.png") else b"<html>"

    loader = ImageLoader(LIMITS, fetch=fetch)
    (picture,) = await loader.load([ImagePart("HTTPS://pictures.example/a.png")])
    assert picture.size == (6, 4)
    with pytest.raises(BadImage, match="an HTML page"):
        await loader.load([ImagePart("https://pictures.example/b.png")])
    await loader.aclose()
