"""The load that overload is measured with: what it counts and when, on a server that answers as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from serve.bench.pressure import Pressure

REFUSAL = b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def pressing(handle: Handler) -> AsyncIterator[Pressure]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        pressure = Pressure(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/there")
        yield pressure
        pressure.close()


async def test_a_refusal_counts_from_when_it_is_there_though_its_request_is_not_yet_taken():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REFUSAL)
        await asyncio.Event().wait()

    async with pressing(handle) as pressure:
        answered = await pressure.ask(pressure.prepare(b"x" * 50_000_000))
        assert (answered.status, answered.retry_after, answered.tail) == (429, True, b"{}")


async def test_a_connection_is_used_again_and_first_and_last_bytes_are_told_apart():
    connections, heads, came, go_on = 0, list[bytes](), asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            heads.append(head)
            came.set()
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n")
            await writer.drain()
            await go_on.wait()
            writer.write(b"6\r\n[DONE]\r\n0\r\n\r\n")

    async with pressing(handle) as pressure:
        asking = asyncio.create_task(pressure.ask(pressure.prepare(b"hi")))
        await came.wait()
        await asyncio.sleep(0.05)
        go_on.set()
        answered = await asking
        assert (answered.status, answered.tail) == (200, b"data:[DONE]")
        assert answered.first_s < answered.total_s
        assert (await pressure.ask(pressure.prepare(b"hi"))).status == 200
    assert connections == 1
    assert heads[0].startswith(b"POST /there HTTP/1.1\r\n")
    assert b"Content-Length: 2\r\n" in heads[0]


async def test_a_connection_that_breaks_off_is_no_answer():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n")
        writer.close()

    async with pressing(handle) as pressure:
        assert (await pressure.ask(pressure.prepare(b"hi"))).status == 0
