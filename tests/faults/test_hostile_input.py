"""What strangers send to the API: every malformed body is a sentence, no limit gives way, nothing is fetched or run."""

from __future__ import annotations

import base64
import gc
import json
import platform
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llava_core.config import ImageLimits, ServerLimits
from llava_core.engines.echo import EchoEngine
from serve.controller import create_app as controller_app
from serve.page.bring_in import read_chat
from serve.protocol import Registration, WorkerStatus
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.lateness import Lateness
from tests.picture_bombs import gif, jpeg, png
from tests.serve.serving import serving
from tests.topology import ROOT

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def insides() -> re.Pattern[str]:
    """What an answer to strangers must not tell: where this server lies, and which version of what it runs."""
    places = {str(ROOT), sys.prefix, sys.base_prefix, sys.exec_prefix, tempfile.gettempdir(), str(Path.home())}
    versions = {
        version(name) for name in ("fastapi", "starlette", "uvicorn", "httptools", "pydantic", "pillow", "torch")
    }
    versions.add(platform.python_version())
    told = [re.escape(place) for place in places if len(place) > 1]
    told += [rf"(?<![\d.]){re.escape(number)}(?![\d.])" for number in versions]
    told += [
        "Traceback",
        "site-packages",
        r"\.py\b",
        "0x[0-9a-f]{4}",
        "pydantic",
        "uvicorn",
        "starlette",
        "/root",
        "/home",
    ]
    return re.compile("|".join(told), re.IGNORECASE)


INSIDES = insides()


@asynccontextmanager
async def gateway(engine: EchoEngine | None = None) -> AsyncIterator[httpx.AsyncClient]:
    engine, pool = engine or EchoEngine("m", delay_s=0), WorkerPool()
    try:
        async with (
            serving(worker_app(engine)) as worker,
            serving(controller_app(pool, clock=lambda: 0.0)) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as http,
        ):
            pool.register(Registration(worker, WorkerStatus(("m",))), 0)
            yield http
    finally:
        await engine.aclose()


def chat(*content: Any, **changes: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content or ("hi",)]
    return {"model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, **changes}


def image(data: bytes | str, mime: str = "image/png") -> dict[str, Any]:
    url = data if isinstance(data, str) else f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


MALFORMED: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"}",
    b"\xff\xfe",
    b"\x00" * 1000,
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"model":"m","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b"1e999999",
    b"-" * 1000,
    b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"m","messages":NaN}',
    *(
        json.dumps(wrong).encode()
        for wrong in (
            {},
            {"model": "m"},
            {"model": 7, "messages": []},
            {"model": "m", "messages": {}},
            chat(model=""),
            chat(model="x" * 10_000),
            chat(messages=[]),
            chat(messages=[None]),
            chat(messages=[[]]),
            chat(messages="hi"),
            chat(messages=[{"role": "root", "content": "x"}]),
            chat(messages=[{"role": "user"}]),
            chat(messages=[{"role": "user", "content": [{"type": "video"}]}]),
            chat(messages=[{"role": "assistant", "content": "x"}]),
            chat(messages=[{"role": "user", "content": "x"}] * 1001),
            chat("x" * 400_001),
            chat(image("")),
            chat(image("x")),
            chat({"type": "image_url"}),
            chat({"type": "image_url", "image_url": None}),
            chat({"type": "image_url", "image_url": 7}),
            chat(image("data:image/png;base64,!!!!")),
            chat(image("data:,")),
            chat(image("data:image/png")),
            chat(*[image(jpeg())] * 17),
            chat(n=0),
            chat(n=9),
            chat(n=-1),
            chat(n=10**30),
            chat(max_tokens=0),
            chat(max_tokens=-5),
            chat(max_tokens="9"),
            chat(max_tokens=10**40),
            chat(temperature=-1),
            chat(temperature=2.1),
            chat(temperature="hot"),
            chat(top_p=1.1),
            chat(top_p=-0.1),
            chat(top_k=-1),
            chat(min_p=2),
            chat(repetition_penalty=0),
            chat(seed=2**70),
            chat(presence_penalty=9),
            chat(stop=[""]),
            chat(stop=["x"] * 17),
            chat(stop="x" * 257),
            chat(stop=7),
            chat(stop_token_ids=["a"]),
            chat(logit_bias={"x": 1}),
            chat(logit_bias={"1": 1000}),
            chat(logprobs=7),
            chat(top_logprobs=5),
            chat(logprobs=True, top_logprobs=99),
            chat(stream="yes"),
            chat(user="x" * 513),
            chat(tools=[{"type": "function"}]),
            chat(response_format={"type": "xml"}),
            chat(response_format=7),
            chat(structured_outputs={"regex": "x" * 70_000}),
            chat(continue_token_ids=[1]),
            chat(continue_token_ids=[-1]),
            chat(continue_final_message=True),
            chat(add_generation_prompt=False),
        )
    ),
    *(
        chat_raw.encode()
        for chat_raw in (
            '{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
            '{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
            '{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1e400}',
        )
    ),
]


async def test_whatever_is_malformed_gets_a_sentence_without_our_insides():
    async with gateway() as http:
        for raw in MALFORMED:
            answer = await http.post(CHAT, content=raw, headers=JSON)
            assert 400 <= answer.status_code < 500, raw[:100]
            error = answer.json()["error"]
            assert error["message"], raw[:100]
            assert error["type"] == "invalid_request_error", raw[:100]
            assert len(answer.text) < 2000, raw[:100]
            told = "\n".join((answer.text, *(f"{name}: {value}" for name, value in answer.headers.items())))
            assert not INSIDES.search(told), told
        assert (await http.post(CHAT, json=chat())).status_code == 200
    print(f"\n{len(MALFORMED)} malformed bodies, all refused")


async def test_whatever_is_over_a_limit_is_refused_at_once_and_leaves_nothing_behind():
    """Numbers, texts, counts, depths and sizes: each several times over, its median against what a refusal may take."""
    me = psutil.Process()
    over = [(CHAT, raw, (400, 422)) for raw in MALFORMED if raw]
    over.append(
        ("/register_worker", b'{"worker_name":"' + b"x" * ServerLimits().max_control_body_bytes + b'"}', (413,))
    )
    took: dict[int, list[float]] = {}
    held: list[float] = []
    async with gateway() as http:
        with Lateness() as late:
            for each in range(6):
                for number, (path, raw, statuses) in enumerate(over):
                    began = time.monotonic()
                    answer = await http.post(path, content=raw, headers=JSON)
                    took.setdefault(number, []).append(time.monotonic() - began)
                    assert answer.status_code in statuses, raw[:100]
                if each in (2, 5):
                    gc.collect()
                    held.append(me.memory_info().rss / 2**20)
        grown = held[1] - held[0]
    medians = [statistics.median(times) for times in took.values()]
    slowest = over[medians.index(max(medians))][1]
    print(
        f"\n{len(over)} bodies over a limit: refused after {1000 * statistics.median(medians):.1f} ms, the slowest of "
        f"them ({slowest[:40]!r}…) after {1000 * max(medians):.1f} ms; this process grew by {grown:.1f} MiB; {late}"
    )
    assert max(medians) < late.allows(0.05), slowest[:200]
    assert grown < 16


PICTURES = {
    "177 megapixels": png(13_300, 13_300, depth=1, colour=0),
    "a line": png(20_000, 1),
    "a high line": png(1, 65_000),
    "cut off": jpeg()[:300],
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "html": b"<!doctype html><script>alert(1)</script>",
    "pdf": b"%PDF-1.7\n",
    "tiff": b"II*\x00" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n/tmp (x) run",
    "nothing": b"",
    "jpeg's first bytes": b"\xff\xd8\xff",
}


async def test_no_picture_however_made_is_more_than_a_refusal():
    me = psutil.Process()
    async with gateway() as http:
        assert (await http.post(CHAT, json=chat(image(jpeg()), "what?"))).status_code == 200
        before = me.memory_info().rss
        for kind, data in PICTURES.items():
            answer = await http.post(CHAT, json=chat(image(data), "what?"))
            assert answer.status_code == 400, kind
            assert answer.json()["error"]["code"] == "BadImage", kind
            assert not INSIDES.search(answer.text), answer.text
        # Of three hundred frames one is seen.
        assert (await http.post(CHAT, json=chat(image(gif(300)), "what?"))).status_code == 200
        grown = me.memory_info().rss - before
        print(f"\n{len(PICTURES)} hostile pictures: this process grew by {grown / 2**20:.0f} MiB")
        assert grown < 200 * 2**20


def address_forms(port: int) -> list[str]:
    """One machine in many spellings, and places of other kinds."""
    hosts = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.1",
        "127.0.1",
        "0",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.000.000.001",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "user@127.0.0.1",
        "user:word@127.0.0.1",
        "127.0.0.1%2f",
        "evil.test@127.0.0.1",
        "169.254.169.254",
        "metadata.google.internal",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "192.168.0.1",
    ]
    forms = [f"http://{host}:{port}/canary.png" for host in hosts]
    forms += [f"https://127.0.0.1:{port}/", f"HTTP://127.0.0.1:{port}/", f" http://127.0.0.1:{port}/"]
    forms += [f"//127.0.0.1:{port}/", f"http:127.0.0.1:{port}/", f"http:\\\\127.0.0.1:{port}\\"]
    forms += [f"{scheme}://127.0.0.1:{port}/" for scheme in ("ftp", "gopher", "dict", "ws", "jar:http", "url:http")]
    return [*forms, "file:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd", "blob:x", "javascript:1"]


@pytest.mark.parametrize("allowed", [(), ("pictures.example", "127.0.0.1", "localhost", "169.254.169.254", "::1")])
async def test_no_address_in_a_request_makes_the_server_fetch_it(allowed: tuple[str, ...]):
    """By default nothing is fetched, and where hosts are allowed, an address that is not public still is not."""
    engine = EchoEngine("m", images=ImageLimits(allow_hosts=allowed, fetch_timeout_s=3), delay_s=0)
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        forms = address_forms(canary.getsockname()[1])
        async with gateway(engine) as http:
            for url in forms:
                answer = await http.post(CHAT, json=chat(image(url), "what?"))
                assert answer.status_code == 400, url
            # Fields that other servers fetch from.
            for field in ("image", "url", "images", "file", "callback", "webhook"):
                wanted = {field: forms[0]}
                await http.post(CHAT, json=chat(**wanted))
                await http.post("/get_worker_address", json={"model": "m", **wanted})
        with pytest.raises(BlockingIOError):
            canary.accept()
    print(f"\n{len(forms)} addresses, none was fetched")


async def test_registering_an_address_makes_the_controller_ask_nobody():
    """The original fetches whatever address somebody registers."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        port = canary.getsockname()[1]
        async with gateway() as http:
            for url in address_forms(port):
                body = {"worker_name": url, "check_heart_beat": True, "worker_status": None}
                assert 400 <= (await http.post("/register_worker", json=body)).status_code < 500
        with pytest.raises(BlockingIOError):
            canary.accept()


async def test_forms_and_odd_types_are_no_chats_however_large():
    boundary = b'--b\r\nContent-Disposition: form-data; name="x"; filename="f"\r\n\r\nx\r\n'
    bodies = {
        "multipart/form-data; boundary=b": boundary + b"--b--" + b"-" * 10_000_000,
        "multipart/form-data; boundary=" + "b" * 3000: boundary * 10_000,
        "application/x-www-form-urlencoded": b"a=1&" * 1_000_000,
        "text/plain": json.dumps(chat()).encode(),
        "application/json; charset=utf-7": b"+AHs-",
        "": b"{}",
    }
    async with gateway() as http:
        for kind, raw in bodies.items():
            for path in (CHAT, "/register_worker", "/get_worker_address", "/v1/files"):
                answer = await http.post(path, content=raw, headers={"Content-Type": kind} if kind else {})
                assert 400 <= answer.status_code < 500, (kind, path)
                assert (await http.get("/health/live")).status_code == 200


TEMPLATES = [
    "{{ 7*7 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "${7*7}",
    "{{ raise_exception('x') }}",
    "{%- endif %}",
    "{# #}",
    "<%= 7*7 %>",
    "#{7*7}",
    "{0.__class__}",
    "%s%n",
    "{{{{",
]


async def test_a_template_in_any_field_is_text():
    async with gateway() as http:
        for text in TEMPLATES:
            answer = await http.post(CHAT, json=chat(text, max_tokens=200, user=text, stop=["\x01"]))
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"].endswith(text)
            assert "49" not in answer.json()["choices"][0]["message"]["content"]
            assert (await http.post(CHAT, json=chat(model=text))).status_code == 404
            system = {"role": "system", "content": text}
            messages = [system, {"role": "user", "content": "hi"}]
            assert (await http.post(CHAT, json=chat(messages=messages))).status_code == 200


async def test_no_path_leads_out_of_the_api():
    async with gateway() as http:
        for path in (
            "/v1/models/../../etc/passwd",
            "/v1/models/..%2f..%2fetc%2fpasswd",
            "/v1/models/%2e%2e/%2e%2e/register_worker",
            "//evil.test/",
            "/\\evil.test",
            "/%5cevil.test",
            "/v1//models",
            "/v1/models/%00",
            "/v1/models/" + "x" * 5000,
            "/static/../serve/gate.py",
            "/https://evil.test/",
        ):
            answer = await http.get(path)
            assert answer.status_code in (200, 400, 401, 403, 404), path
            assert "location" not in answer.headers, path
            assert "root:" not in answer.text
            assert len(answer.text) < 1000
            if answer.status_code == 200:
                assert answer.json()["object"] in ("list", "model")


BOMBS = {
    "brackets": "[" * 1_000_000,
    "objects": '{"messages":' * 300_000,
    "a number": '{"messages": [' + "9" * 100_000 + "]}",
    "a million messages": '{"messages": [' + ",".join(['{"role":"user","content":"x"}'] * 20_000) + "]}",
    "a picture that is a bomb": json.dumps(
        {"messages": [{"role": "user", "content": [image(png(13_300, 13_300, depth=1, colour=0))]}]}
    ),
    "a zip": "PK\x03\x04" + "\0" * 1000,
    "a broken backup": '{"format": "llava-serve", "turns": {"a": ' + "{" * 10_000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_file_that_is_brought_in_cannot_be_a_bomb(kind: str):
    from llava_core.errors import BadImage, BadRequest
    from serve.page.session import Picture

    def take_in(name: str, data: bytes) -> Picture:
        return Picture(name, "p", "u", "image/png", len(data))

    before = psutil.Process().memory_info().rss
    if kind == "a picture that is a bomb":
        # Pictures are passed on, never opened, so this one is for the worker to refuse.
        read_chat("chat.json", BOMBS[kind], take_in)
    else:
        with pytest.raises((BadRequest, BadImage)) as caught:
            read_chat("chat.json", BOMBS[kind], take_in)
        assert not INSIDES.search(caught.value.message)
    assert psutil.Process().memory_info().rss - before < 200 * 2**20
