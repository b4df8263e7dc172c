"""Readers who hardly read: what waits for them is bounded, others do not notice, and in the end they are hung up on."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import httpx

from llava_core.config import ServerLimits
from llava_core.types import Chunk, Request, Usage
from serve.worker_app import create_app
from tests.faults.rig import until
from tests.serve.serving import ScriptedEngine, serving

JSON = {"Content-Type": "application/json"}
READERS = 20
WORD = "x" * 4000
MIB = 2**20


def body(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}).encode()


def request(body: bytes) -> bytes:
    fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode() + body


async def test_twenty_readers_who_hardly_read_cost_little_and_are_hung_up_on():
    made, running = 0, 0

    async def endless(request: Request) -> AsyncGenerator[Chunk]:
        nonlocal made, running
        running += 1
        try:
            if request.messages[0].text == "short":
                yield Chunk("hello", finish_reason="stop", usage=Usage(1, 1))
                return
            while True:
                made += 1
                yield Chunk(WORD)
                await asyncio.sleep(0)
        finally:
            running -= 1

    app = create_app(ScriptedEngine(endless), server=ServerLimits(send_s=1.0))
    async with serving(app) as url, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        asking = request(body("long"))
        loop, readers = asyncio.get_running_loop(), list[socket.socket]()
        for _ in range(READERS):
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            reader.setblocking(False)
            await loop.sock_connect(reader, address)
            await loop.sock_sendall(reader, asking)
            readers.append(reader)

        async def trickle(reader: socket.socket) -> None:
            while await loop.sock_recv(reader, 1):  # noqa: ASYNC110  nobody could wake it
                await asyncio.sleep(1)

        trickling = [asyncio.create_task(trickle(reader)) for reader in readers]
        await until(lambda: running == READERS, 60)
        others = 0
        while running:
            answer = await http.post(url + "/v1/chat/completions", content=body("short"), headers=JSON)
            assert answer.status_code == 200
            others += 1
            await asyncio.sleep(0.05)
            assert others < 1200, "they are still there after a minute"
        for task in trickling:
            task.cancel()
        for reader in readers:
            reader.close()
    waited = made * len(WORD) / MIB / READERS
    print(f"\n{READERS} readers of a byte a second: {waited:.1f} MiB were made for each; {others} others were answered")
    assert others > 1
    # What the system itself buffers of a connection is a few megabytes.
    assert waited < 16
