"""Servers that a measurement starts itself, each a process of its own, and ends when it is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from llava_core.errors import EngineFailure
from serve.client import Client
from serve.launcher.logs import last_words

READY_S = 600.0
_END_S = 15.0
_PROBE_S = 5.0
_LISTED_S = 20.0
ROOT = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(
    module: str, flags: Sequence[str], *, ready: str = "/health/ready", ready_s: float = READY_S, kind: str = ""
) -> AsyncGenerator[tuple[str, int]]:
    """Start `python -m module flags --host … --port …`; its address and process id once it answers at `ready`. `kind`
    stands before the names of these two options.

    Raises EngineFailure with its last words if it ends before, or does not get there within `ready_s`.
    """
    port = free_port()
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", module, *flags, f"--{kind}host", "127.0.0.1", f"--{kind}port", str(port)),
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            if not await _until_ready(process, url + ready, ready_s):
                said.seek(0)
                words = last_words(said.read().decode("utf-8", "replace"))
                raise EngineFailure(f"{module} {' '.join(flags)} did not get ready: {words or 'it said nothing'}")
            yield url, process.pid
        finally:
            await _end(process)


@dataclass(frozen=True)
class Controller:
    """`url` is for workers and our own client, `api` for everybody."""

    url: str
    api: str
    pid: int


@asynccontextmanager
async def running_controller() -> AsyncGenerator[Controller]:
    api = free_port()
    flags = ("--port", str(api))
    async with running("serve.controller", flags, ready="/health/live", kind="control-") as (url, pid):
        yield Controller(url, f"http://127.0.0.1:{api}", pid)


async def until_listed(controller: str, workers: int = 1) -> None:
    """Wait until so many workers have registered."""
    async with asyncio.timeout(_LISTED_S), Client(controller) as client:
        while sum(card.workers for card in await client.models()) < workers:  # noqa: ASYNC110  it cannot wake us
            await asyncio.sleep(0.05)


async def _until_ready(process: asyncio.subprocess.Process, url: str, ready_s: float) -> bool:
    deadline = asyncio.get_running_loop().time() + ready_s
    async with httpx.AsyncClient(trust_env=False, timeout=_PROBE_S) as http:
        while process.returncode is None and asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(url)).status_code == 200:
                    return True
            await asyncio.sleep(0.1)
    return False


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END_S)
    except TimeoutError:
        process.kill()
        await process.wait()
