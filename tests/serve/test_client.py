"""The client between controller and workers: it finds them, moves on when one fails, and lets go when told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request as FastRequest
from starlette.responses import Response

from llava_core.config import ClientTimings
from llava_core.errors import BadImage, LlavaError, NoWorker, Overloaded, UnknownModel, WorkerLost, WorkerTimeout
from llava_core.types import Chunk, Request, Sampling, Usage, user
from serve.client import Client
from serve.controller import create_app as controller_app
from serve.protocol import ModelCard, Registration, WorkerStatus
from serve.worker_app import create_app
from serve.worker_pool import WorkerPool
from tests.serve.serving import ScriptedEngine, serving
from tests.topology import free_port

HELLO = Request("m", (user("hi"),), Sampling(max_tokens=5, seed=3), owner="me")
END = Chunk(finish_reason="stop", usage=Usage(3, 2))


@dataclass
class Listed:
    """A directory that gives these addresses in turn, and says of none that it is gone unless told."""

    addresses: list[str]
    gone: set[str] = field(default_factory=set)
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def cards(self) -> tuple[ModelCard, ...]:
        return ()

    async def pick(self, model: str, exclude: Sequence[str], request_id: str) -> str:
        self.asked.append(tuple(exclude))
        left = [address for address in self.addresses if address not in exclude]
        if not left:
            raise NoWorker("nobody is left")
        return left[0]

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        return address not in self.gone


async def answer(client: Client, request: Request = HELLO, into: list[Chunk] | None = None) -> list[Chunk]:
    """All chunks; those that came before an error are in `into`."""
    chunks: list[Chunk] = [] if into is None else into
    async for chunk in client.stream(request):
        chunks.append(chunk)
    return chunks


def failing(error: LlavaError, after: int = 0) -> ScriptedEngine:
    async def script(request: Request) -> AsyncGenerator[Chunk]:
        for number in range(after):
            yield Chunk(f"{number} ")
        raise error

    return ScriptedEngine(script)


@asynccontextmanager
async def dropping(writes: bytes) -> AsyncIterator[str]:
    """A server that says `writes` to every request and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(writes)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_request_arrives_whole_and_its_answer_too():
    engine = ScriptedEngine()
    app = create_app(engine, token="a token of ours")
    async with serving(app) as url, Client("", directory=Listed([url]), credential="a token of ours") as client:
        assert await answer(client) == [Chunk("Hello "), Chunk("there"), END]
    assert engine.asked == [HELLO]


@pytest.mark.parametrize("error", [Overloaded("full"), NoWorker("loading"), WorkerTimeout("slow")])
async def test_a_worker_that_fails_before_its_first_token_is_left_for_another(error: LlavaError):
    async with AsyncExitStack() as stack:
        bad = await stack.enter_async_context(serving(create_app(failing(error))))
        good = await stack.enter_async_context(serving(create_app(ScriptedEngine())))
        listed = Listed([bad, good])
        client = await stack.enter_async_context(Client("", directory=listed))
        assert (await answer(client))[-1] == END
    assert listed.asked == [(), (bad,)]


@pytest.mark.parametrize(
    "says", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"nonsense\r\n\r\n"]
)
async def test_a_connection_lost_before_the_first_token_is_tried_elsewhere(says: bytes):
    async with AsyncExitStack() as stack:
        nobody = f"http://127.0.0.1:{free_port()}"
        bad = await stack.enter_async_context(dropping(says))
        good = await stack.enter_async_context(serving(create_app(ScriptedEngine())))
        client = await stack.enter_async_context(Client("", directory=Listed([nobody, bad, good])))
        assert (await answer(client))[-1] == END


async def test_a_wrong_request_is_not_tried_again():
    engine = failing(BadImage("too wide"))
    async with serving(create_app(engine)) as url:
        listed = Listed([url, url.replace("127.0.0.1", "localhost")])
        async with Client("", directory=listed) as client:
            with pytest.raises(BadImage, match="too wide"):
                await answer(client)
    assert len(engine.asked) == 1


async def test_when_nobody_is_left_the_reason_is_told():
    full = failing(Overloaded("full", retry_after=3))
    async with serving(create_app(full)) as url, Client("", directory=Listed([url])) as client:
        with pytest.raises(Overloaded) as caught:
            await answer(client)
    assert caught.value.retry_after == 3
    async with Client("", directory=Listed([f"http://127.0.0.1:{free_port()}"])) as client:
        with pytest.raises(NoWorker):
            await answer(client)


async def test_attempts_are_bounded():
    listed = Listed([f"http://127.0.0.1:{free_port()}" for _ in range(9)])
    async with Client("", directory=listed, timings=ClientTimings(attempts=2)) as client:
        with pytest.raises(WorkerLost):
            await answer(client)
    assert len(listed.asked) == 2


@pytest.mark.parametrize("error", [Overloaded("full"), BadImage("too wide"), WorkerLost("gone")])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_request_that_failed_is_forgotten_at_once_with_its_pictures(error: LlavaError, after: int):
    request = Request("m", (user("hi"),))
    async with serving(create_app(failing(error, after))) as url, Client("", directory=Listed([url])) as client:
        gc.disable()
        try:
            with contextlib.suppress(LlavaError):
                await answer(client, request)
            seen = weakref.ref(request)
            del request
            assert seen() is None
        finally:
            gc.enable()


async def test_an_error_after_the_first_token_that_no_other_worker_can_mend_is_the_callers():
    got: list[Chunk] = []
    async with serving(create_app(failing(Overloaded("full"), after=2))) as url:
        async with Client("", directory=Listed([url])) as client:
            with pytest.raises(Overloaded):
                await answer(client, into=got)
        listed = Listed([url, "http://127.0.0.1:1"])
        async with Client("", directory=listed) as client:
            with pytest.raises(WorkerLost):
                await answer(client)
    assert got == [Chunk("0 "), Chunk("1 ")]
    assert listed.asked == [(), (url,), (url, "http://127.0.0.1:1")]


@pytest.mark.parametrize("ending", [b"", b"data: [DONE]\n\n", b'data: {"choices": [{"del'])
async def test_a_stream_without_an_end_is_a_lost_worker(ending: bytes):
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "Hel"}}]}).encode()
    says = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: " + event + b"\n\n" + ending
    got: list[Chunk] = []
    async with dropping(says) as url, Client("", directory=Listed([url])) as client:
        with pytest.raises(WorkerLost):
            await answer(client, into=got)
    assert got == [Chunk("Hel")]


def _chunked(*texts: str) -> bytes:
    events = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
    return b"".join(b"%x\r\ndata: %s\n\n\r\n" % (len(event) + 8, event.encode()) for event in events)


async def test_what_came_before_a_connection_broke_off_is_still_given_out():
    go_on, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + _chunked("one"))
        await go_on.wait()
        writer.write(_chunked("two", "three"))
        await writer.drain()
        writer.close()
        closed.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    got: list[Chunk] = []

    async def read_slowly(client: Client) -> None:
        async for chunk in client.stream(HELLO):
            got.append(chunk)
            go_on.set()
            await closed.wait()
            # Time for the client to learn of both the words and the end.
            for _ in range(20):
                await asyncio.sleep(0)

    async with server, Client("", directory=Listed([url])) as client:
        with pytest.raises(WorkerLost):
            await read_slowly(client)
    assert got == [Chunk("one"), Chunk("two"), Chunk("three")]


async def test_requests_one_after_the_other_share_a_connection():
    app, ports = create_app(ScriptedEngine()), set[int]()

    @app.middleware("http")
    async def note(request: FastRequest, call_next: RequestResponseEndpoint) -> Response:
        ports.add(request.client.port if request.client else 0)
        return await call_next(request)

    async with serving(app) as url, Client("", directory=Listed([url])) as client:
        for _ in range(4):
            assert (await answer(client))[-1] == END
    assert len(ports) == 1


async def test_a_kept_connection_that_the_worker_closed_does_not_lose_the_request():
    whole = b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
    says = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\ndata: %s\n\n"
    async with dropping(says % (len(whole) + 8, whole)) as url, Client("", directory=Listed([url])) as client:
        for _ in range(5):
            assert await answer(client) == [Chunk(finish_reason="stop")]


async def test_closing_the_stream_cancels_it_on_the_worker():
    async def endless(request: Request) -> AsyncGenerator[Chunk]:
        yield Chunk("a")
        await asyncio.Event().wait()

    engine = ScriptedEngine(endless)
    async with serving(create_app(engine)) as url, Client("", directory=Listed([url])) as client:
        stream = client.stream(HELLO)
        assert await anext(stream) == Chunk("a")
        await stream.aclose()
        await asyncio.wait_for(engine.released.wait(), 5)


async def test_cancelling_while_waiting_for_the_first_token_cancels_it_on_the_worker():
    started = asyncio.Event()

    async def never(request: Request) -> AsyncGenerator[Chunk]:
        started.set()
        await asyncio.Event().wait()
        yield END

    engine = ScriptedEngine(never)
    async with serving(create_app(engine)) as url, Client("", directory=Listed([url])) as client:
        asking = asyncio.create_task(answer(client))
        await asyncio.wait_for(started.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(engine.released.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await asking


async def _stuck(request: Request) -> AsyncGenerator[Chunk]:
    if request.owner.endswith("later"):
        yield Chunk("a")
    await asyncio.Event().wait()
    yield END


@pytest.mark.parametrize("owner", ["at once", "later"])
async def test_a_worker_that_says_nothing_for_too_long_is_a_timeout(owner: str):
    timings = ClientTimings(first_token_s=0.3, between_tokens_s=0.1)
    app = create_app(ScriptedEngine(_stuck))
    async with serving(app) as url, Client("", directory=Listed([url]), timings=timings) as client:
        with pytest.raises(WorkerTimeout):
            await answer(client, Request("m", (user("hi"),), owner=owner))


async def test_a_silent_worker_that_the_controller_gave_up_is_left_for_another():
    async with AsyncExitStack() as stack:
        hung = await stack.enter_async_context(serving(create_app(ScriptedEngine(_stuck))))
        good = await stack.enter_async_context(serving(create_app(ScriptedEngine())))
        listed = Listed([hung, good], gone={hung})
        # Long enough that on a busy machine, too, the first word comes before the silence counts.
        client = await stack.enter_async_context(Client("", directory=listed, timings=ClientTimings(check_s=1)))
        assert (await answer(client))[-1] == END
        # One that falls silent in mid-answer too; what it said stays said.
        assert (await answer(client, Request("m", (user("hi"),), owner="later")))[0] == Chunk("a")
    async with serving(create_app(ScriptedEngine(_stuck))) as hung:
        listed = Listed([hung], gone={hung})
        async with Client("", directory=listed, timings=ClientTimings(check_s=0.05)) as client:
            with pytest.raises(WorkerLost, match="fallen silent"):
                await answer(client, Request("m", (user("hi"),), owner="later"))


async def test_a_slow_worker_that_is_still_listed_is_waited_for():
    async def slow(request: Request) -> AsyncGenerator[Chunk]:
        await asyncio.sleep(0.2)
        yield END

    timings = ClientTimings(check_s=0.02)
    async with (
        serving(create_app(ScriptedEngine(slow))) as url,
        Client("", directory=Listed([url]), timings=timings) as client,
    ):
        assert await answer(client) == [END]


async def test_the_controllers_answers_keep_their_class():
    async with serving(controller_app(WorkerPool())) as url, Client(url) as client:
        assert await client.models() == ()
        with pytest.raises(NoWorker, match="no worker is running"):
            await answer(client)
        await httpx.AsyncClient(trust_env=False).post(
            f"{url}/register_worker",
            json={"worker_name": "http://127.0.0.1:9", "worker_status": {"model_names": ["other"]}},
        )
        assert [(card.info.name, card.workers) for card in await client.models()] == [("other", 1)]
        with pytest.raises(UnknownModel, match="running: other"):
            await answer(client)


async def test_a_controller_that_is_not_there_is_no_worker():
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(NoWorker, match="cannot be reached"):
            await client.models()
        with pytest.raises(NoWorker, match="cannot be reached"):
            await answer(client)


async def test_a_worker_found_before_is_used_while_the_controller_is_away():
    port = free_port()
    pool = WorkerPool()
    async with serving(create_app(ScriptedEngine())) as worker, Client(f"http://127.0.0.1:{port}") as client:
        async with serving(controller_app(pool, clock=lambda: 0.0), port=port):
            pool.register(Registration(worker, WorkerStatus(("m",))), 0)
            await answer(client)
        assert (await answer(client))[-1] == END


async def test_a_slow_answer_is_waited_for_though_a_new_controller_knows_its_worker_not_yet():
    began, may_answer, port = asyncio.Event(), asyncio.Event(), free_port()

    async def slow(request: Request) -> AsyncGenerator[Chunk]:
        began.set()
        await may_answer.wait()
        yield END

    pool = WorkerPool()
    async with (
        serving(create_app(ScriptedEngine(slow))) as worker,
        Client(f"http://127.0.0.1:{port}", timings=ClientTimings(check_s=0.02)) as client,
    ):
        async with serving(controller_app(pool, clock=lambda: 0.0), port=port):
            pool.register(Registration(worker, WorkerStatus(("m",))), 0)
            asking = asyncio.create_task(answer(client))
            await began.wait()
        async with serving(controller_app(WorkerPool()), port=port):
            await asyncio.sleep(0.3)
            may_answer.set()
            assert await asking == [END]


async def test_a_single_workers_address_serves_as_a_controllers():
    async with serving(create_app(ScriptedEngine())) as url, Client(url) as client:
        assert [card.info.name for card in await client.models()] == ["m"]
        assert (await answer(client))[-1] == END
        with pytest.raises(UnknownModel):
            await answer(client, Request("other", (user("hi"),)))


async def test_what_is_no_llm_server_at_all_is_said_to_be_none():
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
    async with dropping(page) as url, Client(url) as client:
        with pytest.raises(NoWorker, match="is no controller"):
            await client.models()
        with pytest.raises(NoWorker, match="is no controller"):
            await answer(client)
