"""Runs an app on a port until told to stop, then lets running requests finish; a second signal ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

import uvicorn
import uvloop
from fastapi import FastAPI

from llava_core.config import ServerLimits
from llava_core.errors import BadRequest
from serve.http_protocol import impatient_protocol
from serve.log_format import formatter

log = logging.getLogger(__name__)

T = TypeVar("T")

BACKLOG = 2048
LARGE_BUFFER_BYTES = 8 * 1024 * 1024
_M_MMAP_THRESHOLD = -3


def start_logging() -> None:
    """One line per event on standard error; the servers' own chatter only from warnings up."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on libuv's loop, which spends less on each token than asyncio's own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def return_large_buffers() -> None:
    """Have the C library hand buffers of megabytes, which bodies with pictures are, back to the system once freed.

    glibc raises its own threshold for that up to 32 MiB as such buffers come and go, and keeps them from then on.
    The one set here is above what a step of a model allocates again and again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES)


def spare_what_stays() -> None:
    """Have garbage collections pass over what is there by now: modules, the app, a loaded model.

    Looking through all of it, as every full collection does, holds everything up for 50 ms in a controller and for a
    quarter of a second in a worker with torch, whenever enough requests have come.
    """
    gc.collect()
    gc.freeze()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, made before anything slow starts; port 0 takes any free one. Raises BadRequest."""
    if not 0 <= port <= 65535:
        raise BadRequest(f"there is no port {port}; choose one between 1 and 65535, or 0 for any that is free")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise BadRequest(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from None
    # asyncio turns Nagle's algorithm off only for sockets that it made itself; accepted ones inherit it from here.
    # With it on, each short answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def own_address(host: str, listener: socket.socket) -> str:
    """Where others on this machine reach the listener."""
    port = listener.getsockname()[1]
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(host)
    return f"http://{reachable or (f'[{host}]' if ':' in host else host)}:{port}"


async def run_server(
    app: FastAPI,
    listener: socket.socket,
    *,
    drain_s: float,
    limits: ServerLimits | None = None,
    before_drain: Callable[[], Awaitable[None]] | None = None,
    beside: tuple[FastAPI, socket.socket] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Then await `before_drain`, take no more connections, and give running
    requests `drain_s`; the app's own shutdown comes last. `beside` is a second face of the app, ended before it."""
    limits = limits or ServerLimits()
    return_large_buffers()
    spare_what_stays()
    server, other = _server(app, drain_s, limits), _server(beside[0], drain_s, limits) if beside else None
    asked = asyncio.Event()

    def stop() -> None:
        if asked.is_set():
            log.warning("stopping at once")
            logging.shutdown()
            os._exit(130)
        log.info("stopping: running answers have %.0f s to finish; once more to stop at once", drain_s)
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    others = [asyncio.create_task(other.serve(sockets=[beside[1]]))] if other and beside else []
    stopping = asyncio.create_task(asked.wait())
    await asyncio.wait({serving, *others, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not serving.done():
        if before_drain is not None:
            await before_drain()
        for each in (app, *((beside[0],) if beside else ())):
            bodies = getattr(each.state, "bodies", None)
            if bodies is not None:
                bodies.give_up()
        if other is not None:
            other.should_exit = True
            await asyncio.wait(others)
        server.should_exit = True
    await serving


def _server(app: FastAPI, drain_s: float, limits: ServerLimits) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=impatient_protocol(limits.header_s),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # What a request says of where it came from is believed by `serve/quotas.py` only, where it is told to.
            proxy_headers=False,
            timeout_keep_alive=limits.keepalive_s,
            timeout_graceful_shutdown=max(1, round(drain_s)),
            lifespan="on",
        )
    )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the caller's."""
        yield
