"""Below the routes: the listening socket, and connections on which no whole request comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import pytest

from llava_core.errors import BadRequest
from llava_core.types import Chunk, Request, Usage
from serve.http_protocol import MAX_HEAD_BYTES
from serve.server import listen, own_address
from serve.worker_app import create_app
from tests.serve.serving import ScriptedEngine, serving


def test_accepted_connections_do_not_wait_to_fill_packets():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_port_that_is_taken_is_told_in_a_sentence():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BadRequest, match=f"cannot listen on 127.0.0.1:{port}: .*choose another"):
            listen("127.0.0.1", port)
    with pytest.raises(BadRequest):
        listen("127.0.0.1", 70000)
    with pytest.raises(BadRequest):
        listen("no.such.host.invalid", 0)


def test_a_wildcard_host_is_reached_by_loopback():
    with listen("0.0.0.0", 0) as listener:
        assert own_address("0.0.0.0", listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


WHOLE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "second"])
@pytest.mark.parametrize("half", [b"", b"GET /health/live HTTP/1.1\r\nHost"], ids=["silent", "half"])
async def test_a_connection_without_a_whole_head_is_closed(before: bytes, half: bytes):
    async with serving(create_app(ScriptedEngine()), header_s=0.1) as url:
        reader, writer = await connect(url)
        if before:
            writer.write(before)
            assert b'"status"' in await reader.readuntil(b"}")
        writer.write(half)
        # After a whole request it is the keep-alive wait that ends a silent connection.
        rest = await asyncio.wait_for(reader.read(), 8)
        writer.close()
    assert rest == b""


async def test_a_request_that_takes_longer_than_a_head_may_is_left_alone():
    async def slow(request: Request) -> AsyncGenerator[Chunk]:
        await asyncio.sleep(0.3)
        yield Chunk("late", finish_reason="stop", usage=Usage(1, 1))

    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    async with serving(create_app(ScriptedEngine(slow)), header_s=0.1) as url:
        reader, writer = await connect(url)
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert b"late" in await asyncio.wait_for(reader.readuntil(b"late"), 5)
        writer.close()


async def test_a_head_that_grows_without_end_is_closed():
    async with serving(create_app(ScriptedEngine())) as url:
        reader, writer = await connect(url)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(3 * MAX_HEAD_BYTES // 1000):
                writer.write(b"X-%d: " % number + b"a" * 1000 + b"\r\n")
                await writer.drain()
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_reader_who_leaves_after_asking_ahead_frees_the_engine():
    released = asyncio.Event()

    async def endless(request: Request) -> AsyncGenerator[Chunk]:
        try:
            while True:
                yield Chunk("word ")
                await asyncio.sleep(0.01)
        finally:
            released.set()

    body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    async with serving(create_app(ScriptedEngine(endless))) as url:
        reader, writer = await connect(url)
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body + WHOLE)
        await asyncio.wait_for(reader.readuntil(b"word"), 5)
        writer.transport.abort()
        await asyncio.wait_for(released.wait(), 5)


async def test_requests_sent_ahead_are_answered_in_turn():
    async with serving(create_app(ScriptedEngine())) as url:
        reader, writer = await connect(url)
        writer.write(3 * WHOLE)
        for _ in range(3):
            assert await asyncio.wait_for(reader.readuntil(b'"ready"}'), 5)
        writer.close()
