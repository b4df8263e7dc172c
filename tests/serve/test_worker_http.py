"""One worker over HTTP: statuses, streams, readers who leave, bodies that are too large or too slow."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_core.config import RequestLimits, ServerLimits
from llava_core.errors import (
    BadImage,
    ContextOverflow,
    EngineFailure,
    LlavaError,
    MissingDependency,
    NoWorker,
    OutOfMemory,
    Overloaded,
    Unauthorized,
    UnknownModel,
    WorkerLost,
    WorkerTimeout,
)
from llava_core.types import Chunk, EngineStatus, Request, Usage
from serve.http_errors import STATUS, error_from
from serve.worker_app import EngineSlot, create_app
from tests.serve.serving import ScriptedEngine, serving

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


@asynccontextmanager
async def talking_to(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
        yield http


async def test_a_whole_answer_and_a_stream_say_the_same():
    async with talking_to(create_app(ScriptedEngine())) as http:
        whole = (await http.post(CHAT, json=body())).json()
        streamed = (await http.post(CHAT, json=body(stream=True, stream_options={"include_usage": True}))).text
    assert whole["choices"][0]["message"]["content"] == "Hello there"
    events = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    parsed = [json.loads(event) for event in events[:-1]]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in parsed[:-1]) == "Hello there"
    assert parsed[-1]["usage"] == whole["usage"]
    assert len({event["id"] for event in parsed}) == 1


async def test_usage_is_streamed_only_to_those_who_ask():
    async with talking_to(create_app(ScriptedEngine())) as http:
        assert "usage" not in (await http.post(CHAT, json=body(stream=True))).text


async def test_the_callers_request_id_is_kept_and_a_harmful_one_replaced():
    engine = ScriptedEngine()
    async with talking_to(create_app(engine)) as http:
        kept = await http.post(CHAT, json=body(), headers={"X-Request-Id": "req-1.a_B"})
        replaced = await http.post(CHAT, json=body(), headers={"X-Request-Id": "a b;<script>"})
    assert kept.headers["X-Request-Id"] == kept.json()["id"] == engine.asked[0].id == "req-1.a_B"
    assert replaced.headers["X-Request-Id"] == replaced.json()["id"] == engine.asked[1].id
    assert replaced.headers["X-Request-Id"].startswith("chatcmpl-")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadImage("too wide", param="messages"), 400),
        (ContextOverflow("too long"), 400),
        (Unauthorized("who are you?"), 401),
        (UnknownModel("who is that?"), 404),
        (Overloaded("full", retry_after=2.4), 429),
        (MissingDependency("pip install x"), 500),
        (EngineFailure("broken", request_id="r"), 500),
        (WorkerLost("gone"), 502),
        (NoWorker("none"), 503),
        (OutOfMemory("no memory", request_id="r"), 503),
        (WorkerTimeout("too slow"), 504),
    ],
    ids=lambda value: value.code if isinstance(value, LlavaError) else None,
)
async def test_an_error_before_the_first_token_is_a_real_status(error: LlavaError, status: int, stream: bool):
    async def fail(request: Request) -> AsyncGenerator[Chunk]:
        raise error
        yield Chunk()

    async with talking_to(create_app(ScriptedEngine(fail))) as http:
        answer = await http.post(CHAT, json=body(stream=stream))
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == error.code
    assert answer.json()["error"]["message"] == error.message
    assert answer.headers.get("Retry-After") == ("3" if error.retry_after else None)
    assert type(error_from(status, answer.headers, answer.content, source="it")) is type(error)


def test_every_error_class_has_its_number():
    def tree(cls: type[LlavaError]) -> set[type[LlavaError]]:
        return {cls}.union(*map(tree, cls.__subclasses__()))

    known = {cls for cls in tree(LlavaError) if cls.__module__ == LlavaError.__module__}
    # A checkpoint is loaded before anybody can send a request about it.
    assert {cls.__name__ for cls in known - set(STATUS)} <= {"BadCheckpoint"}


async def test_an_error_after_the_first_token_is_an_event_and_nothing_follows_it():
    async def break_off(request: Request) -> AsyncGenerator[Chunk]:
        yield Chunk("Hel")
        raise OutOfMemory("no memory left", request_id=request.id)

    async with talking_to(create_app(ScriptedEngine(break_off))) as http:
        streamed = await http.post(CHAT, json=body(stream=True))
        whole = await http.post(CHAT, json=body())
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert len(events) == 2
    assert json.loads(events[1])["error"]["code"] == "OutOfMemory"
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "OutOfMemory")


@pytest.mark.parametrize("after", [0, 1])
async def test_an_engine_that_breaks_tells_the_reader_an_id_and_the_log_the_cause(
    after: int, caplog: pytest.LogCaptureFixture
):
    async def crash(request: Request) -> AsyncGenerator[Chunk]:
        for _ in range(after):
            yield Chunk("a")
        raise RuntimeError("secret path /etc/x")

    async with talking_to(create_app(ScriptedEngine(crash))) as http:
        answer = await http.post(CHAT, json=body(stream=True), headers={"X-Request-Id": "req-7"})
        again = await http.get("/health/ready")
    assert "EngineFailure" in answer.text
    assert "req-7" in answer.text
    assert "secret" not in answer.text
    assert "secret path" in caplog.text
    assert again.status_code == 200


async def test_a_crash_outside_the_engine_is_answered_without_its_insides(caplog: pytest.LogCaptureFixture):
    app = create_app(ScriptedEngine())

    @app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("secret")

    async with talking_to(app) as http:
        answer = await http.get("/crash")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "EngineFailure"
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-Id"]
    assert "secret" not in answer.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", CHAT, 405), ("DELETE", "/health/live", 405), ("GET", "/v1/models/x", 404)],
)
async def test_wrong_paths_and_methods_get_the_same_kind_of_body(method: str, path: str, status: int):
    async with talking_to(create_app(ScriptedEngine())) as http:
        answer = await http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) >= {"message", "type", "code", "param"}


async def test_a_form_from_a_strangers_page_is_no_chat():
    engine = ScriptedEngine()
    async with talking_to(create_app(engine)) as http:
        answer = await http.post(CHAT, content=json.dumps(body()), headers={"Content-Type": "text/plain"})
    assert (answer.status_code, engine.asked) == (415, [])


async def test_another_model_than_the_workers_own_is_refused():
    async with talking_to(create_app(ScriptedEngine(name="own"))) as http:
        answer = await http.post(CHAT, json=body(model="other\n"))
        own = await http.get("/v1/models/own")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UnknownModel")
    assert own.json()["info"]["context_length"] == 100


async def test_health_tells_loading_ready_and_draining_apart():
    slot = EngineSlot()
    async with talking_to(create_app(slot)) as http:

        async def health() -> tuple[str, int, int]:
            live, ready = await http.get("/health/live"), await http.get("/health/ready")
            chat = await http.post(CHAT, json=body())
            return live.json()["status"], ready.status_code, chat.status_code

        assert await health() == ("loading", 503, 503)
        slot.engine = ScriptedEngine()
        assert await health() == ("ready", 200, 200)
        slot.draining = True
        assert await health() == ("draining", 503, 503)


async def test_the_status_counts_running_and_waiting():
    engine = ScriptedEngine(busy=EngineStatus(running=3, waiting=2, capacity=4))
    async with talking_to(create_app(engine)) as http:
        status = (await http.post("/worker_get_status")).json()
    assert (status["model_names"], status["queue_length"], status["capacity"]) == (["m"], 5, 4)


class Exchange:
    """An app spoken to without a network, so that the reader leaves at an exact moment."""

    def __init__(self, app: FastAPI, raw: bytes, path: str = CHAT) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.first_byte = asyncio.Event()
        self._app = app
        self._incoming: list[dict[str, Any]] = [{"type": "http.request", "body": raw, "more_body": False}]
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, Any]:
        if self._incoming:
            return self._incoming.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.first_byte.set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reader_who_leaves_before_the_first_token_frees_the_engine(stream: bool):
    started = asyncio.Event()

    async def never(request: Request) -> AsyncGenerator[Chunk]:
        started.set()
        await asyncio.Event().wait()
        yield Chunk()

    engine = ScriptedEngine(never)
    exchange = Exchange(create_app(engine), json.dumps(body(stream=stream)).encode())
    running = asyncio.create_task(exchange.run())
    await asyncio.wait_for(started.wait(), 5)
    exchange.left.set()
    await asyncio.wait_for(running, 5)
    assert engine.released.is_set()
    assert exchange.sent == []


async def test_a_reader_who_leaves_in_the_middle_frees_the_engine():
    async def endless(request: Request) -> AsyncGenerator[Chunk]:
        yield Chunk("a")
        await asyncio.Event().wait()

    engine = ScriptedEngine(endless)
    exchange = Exchange(create_app(engine), json.dumps(body(stream=True)).encode())
    running = asyncio.create_task(exchange.run())
    await asyncio.wait_for(exchange.first_byte.wait(), 5)
    assert not engine.released.is_set()
    exchange.left.set()
    await asyncio.wait_for(running, 5)
    assert engine.released.is_set()


async def test_a_reader_who_leaves_while_sending_blocks_frees_the_engine():
    class Stuck(Exchange):
        async def _send(self, message: Any) -> None:
            self.first_byte.set()
            await asyncio.Event().wait()

    engine = ScriptedEngine()
    exchange = Stuck(create_app(engine), json.dumps(body(stream=True)).encode())
    running = asyncio.create_task(exchange.run())
    await asyncio.wait_for(exchange.first_byte.wait(), 5)
    exchange.left.set()
    await asyncio.wait_for(running, 5)
    assert engine.released.is_set()


def _texts(sent: list[dict[str, Any]]) -> list[str]:
    return [message["body"].decode() for message in sent if message["type"] == "http.response.body"]


async def test_words_that_are_ready_together_travel_together():
    async def ready(request: Request) -> AsyncGenerator[Chunk]:
        for word in ("a", "b", "c"):
            yield Chunk(word)
        yield Chunk(finish_reason="stop", usage=Usage(1, 3))

    exchange = Exchange(create_app(ScriptedEngine(ready)), json.dumps(body(stream=True)).encode())
    await exchange.run()
    (all_of_it,) = _texts(exchange.sent)
    assert [all_of_it.count(f'"content":"{word}"') for word in "abc"] == [1, 1, 1]
    assert all_of_it.endswith("data: [DONE]\n\n")
    assert exchange.sent[-1]["more_body"] is False


async def test_a_word_that_is_ready_is_never_held_back_for_the_next():
    gates = [asyncio.Event() for _ in range(3)]

    async def paced(request: Request) -> AsyncGenerator[Chunk]:
        for number, gate in enumerate(gates):
            yield Chunk(f"word{number}")
            await gate.wait()
        yield Chunk(finish_reason="stop", usage=Usage(1, 3))

    class Reader(Exchange):
        async def _send(self, message: Any) -> None:
            await super()._send(message)
            for number, gate in enumerate(gates):
                # Each word has to be here before the engine may go on to the next.
                if f"word{number}" in "".join(_texts(self.sent)):
                    gate.set()

    exchange = Reader(create_app(ScriptedEngine(paced)), json.dumps(body(stream=True)).encode())
    await asyncio.wait_for(exchange.run(), 5)
    assert len(_texts(exchange.sent)) == 4


async def test_words_before_an_error_are_sent_with_it():
    async def break_off(request: Request) -> AsyncGenerator[Chunk]:
        yield Chunk("Hel")
        yield Chunk("lo")
        raise OutOfMemory("no memory left", request_id=request.id)

    exchange = Exchange(create_app(ScriptedEngine(break_off)), json.dumps(body(stream=True)).encode())
    await exchange.run()
    said = "".join(_texts(exchange.sent))
    assert said.index('"Hel"') < said.index('"lo"') < said.index("OutOfMemory")
    assert "[DONE]" not in said


async def test_a_reader_who_takes_nothing_is_hung_up_on():
    class Stuck(Exchange):
        async def _send(self, message: Any) -> None:
            await asyncio.Event().wait()

    engine = ScriptedEngine()
    app = create_app(engine, server=ServerLimits(send_s=0.01))
    await asyncio.wait_for(Stuck(app, json.dumps(body(stream=True)).encode()).run(), 5)
    assert engine.released.is_set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_failed_is_forgotten_at_once_with_its_pictures(stream: bool):
    async def fail(request: Request) -> AsyncGenerator[Chunk]:
        seen.append(weakref.ref(request))
        yield Chunk("a")
        raise BadImage("too wide")

    seen: list[weakref.ref[Request]] = []
    engine = ScriptedEngine(fail)
    gc.disable()
    try:
        await Exchange(create_app(engine), json.dumps(body(stream=stream)).encode()).run()
        engine.asked.clear()
        assert [ref() for ref in seen] == [None]
    finally:
        gc.enable()


async def test_a_caller_who_leaves_with_half_a_body_is_not_answered(caplog: pytest.LogCaptureFixture):
    exchange = Exchange(create_app(ScriptedEngine()), b"")
    exchange._incoming = [{"type": "http.request", "body": b"{", "more_body": True}]
    exchange.left.set()
    await exchange.run()
    assert exchange.sent == []
    assert "Traceback" not in caplog.text


async def test_a_body_that_is_too_large_is_refused_with_its_length_or_without():
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    app = create_app(ScriptedEngine(), limits=RequestLimits(max_body_bytes=1_000_000))
    json_type = {"Content-Type": "application/json"}
    async with talking_to(app) as http:
        told = await http.post(CHAT, content=b"x" * 4_000_000, headers=json_type)
        chunked = await http.post(CHAT, content=pieces(), headers=json_type)
        control = await http.post("/worker_get_status", content=b"x" * 300_000, headers=json_type)
        after = await http.post(CHAT, json=body())
    assert (told.status_code, chunked.status_code, after.status_code) == (413, 413, 200)
    # Nobody reads the body of this one, so it does no harm.
    assert control.status_code == 200
    assert "1000000 bytes" in told.json()["error"]["message"]
    assert told.json()["error"]["code"] == "BadRequest"


async def test_many_large_bodies_at_once_are_bounded_together():
    async def slow(request: Request) -> AsyncGenerator[Chunk]:
        held.set()
        await go_on.wait()
        yield Chunk(finish_reason="stop", usage=Usage(1, 0))

    held, go_on = asyncio.Event(), asyncio.Event()
    app = create_app(ScriptedEngine(slow), server=ServerLimits(max_held_body_bytes=150_000))
    padded = body(padding="x" * 100_000)
    async with talking_to(app) as http:
        first = asyncio.create_task(http.post(CHAT, json=padded))
        await asyncio.wait_for(held.wait(), 5)
        second = await http.post(CHAT, json=padded)
        go_on.set()
        assert (await first).status_code == 200
        third = await http.post(CHAT, json=padded)
    assert (second.status_code, second.json()["error"]["code"], third.status_code) == (429, "Overloaded", 200)


async def test_a_body_that_does_not_come_is_given_up():
    app = create_app(ScriptedEngine(), server=ServerLimits(body_s=0.05))
    async with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
        writer.write(b'Content-Length: 100\r\n\r\n{"mo')
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": "m"}',
        b"[" * 100_000,
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    ]
    + [
        json.dumps(body(**wrong)).encode()
        for wrong in (
            {"temperature": float("nan")},
            {"top_p": 7},
            {"max_tokens": -1},
            {"n": 0},
            {"stop": [""]},
            {"messages": []},
            {"messages": [{"role": "robot", "content": "x"}]},
            {"logit_bias": {"x": 1}},
        )
    ],
)
async def test_bad_input_gets_a_sentence_and_the_next_request_works(raw: bytes):
    engine = ScriptedEngine()
    async with talking_to(create_app(engine)) as http:
        answer = await http.post(CHAT, content=raw, headers={"Content-Type": "application/json"})
        after = await http.post(CHAT, json=body())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert not any(word in answer.text for word in ("Traceback", "pydantic", ".py", "0x", "site-packages"))
    assert after.status_code == 200
    assert len(engine.asked) == 1


async def test_the_log_has_one_line_per_chat_and_no_word_of_it(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    async with talking_to(create_app(ScriptedEngine())) as http:
        await http.post(CHAT, json=body(messages=[{"role": "user", "content": "my secret"}]))
        await http.post(CHAT, json=body(model="x\r\nINFO forged\u2028line\x1b[31m"))
    chats = [record.getMessage() for record in caplog.records if record.name == "serve.chat_answer"]
    assert len(chats) == 1
    assert "outcome=stop" in chats[0]
    assert "prompt_tokens=3 tokens=2" in chats[0]
    assert "secret" not in caplog.text
    assert "forged" not in caplog.text
