"""The operator's moderation: nothing that it refuses reaches a worker, and what it finds in an answer is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llava_core.config import ModerationLimits
from llava_core.errors import BadRequest, ContentRefused, ModerationFailed
from llava_core.types import Request, user
from serve.controller import create_app as controller_app
from serve.moderation import LocalClassifier, Moderation, ModerationServer, named_classifier
from serve.moderation_flags import moderation
from serve.page.pictures import PictureDesk
from serve.page.room import Room, RoomTimings, Settings
from serve.protocol import Registration, WorkerStatus
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import until
from tests.serve.serving import serving

PICTURE = "data:image/png;base64,Ym9tYg=="


@dataclass
class FakeModeration:
    """Finds violence in text with "fight" in it and in a certain picture; says what it was asked."""

    status: int = 200
    body: str | None = None
    delay_s: float = 0.0
    find: str = "fight"
    asked: list[Any] = field(default_factory=list[Any])
    keys: list[str | None] = field(default_factory=list[str | None])

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/moderations")
        async def moderate(http: HttpRequest) -> Response:
            self.keys.append(http.headers.get("authorization"))
            given = await http.json()
            self.asked.append(given)
            await asyncio.sleep(self.delay_s)
            if self.body is not None:
                return Response(self.body, self.status, media_type="application/json")
            found = self.find in json.dumps(given["input"]) or PICTURE in json.dumps(given["input"])
            categories = {"violence": found, "hate": False, "self-harm": None}
            return JSONResponse({"results": [{"flagged": found, "categories": categories}]}, self.status)

        return app


@asynccontextmanager
async def moderated(
    fake: FakeModeration,
    engine: FakeEngine,
    *,
    fail_open: bool = False,
    hold_answers: bool = False,
    judge_s: float = 30,
) -> AsyncIterator[httpx.AsyncClient]:
    pool = WorkerPool()
    async with serving(fake.app()) as judge_url, serving(worker_app(engine)) as worker:
        judge = ModerationServer(f"{judge_url}/v1/moderations", "the-key", "omni")
        limits = ModerationLimits(judge_s=judge_s)
        made = Moderation(judge, fail_open=fail_open, hold_answers=hold_answers, limits=limits)
        async with (
            serving(controller_app(pool, clock=lambda: 0.0, moderation=made)) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http,
        ):
            pool.register(Registration(worker, WorkerStatus(("m",))), 0)
            yield http


def chat(*parts: Any, **changes: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}], "max_tokens": 5, **changes}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


IMAGE = {"type": "image_url", "image_url": {"url": PICTURE}}


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body)


async def test_what_is_refused_reaches_no_worker_and_says_why():
    fake, engine = FakeModeration(), FakeEngine()
    async with moderated(fake, engine) as http:
        said = {"role": "assistant", "content": "First, fight"}
        begun = chat(continue_final_message=True, continue_token_ids=[5, 6], continue_chars=12)
        begun["messages"] = [{"role": "user", "content": "hello"}, said]
        bodies = (
            chat(text("how to fight")),
            chat(text("what is this?"), IMAGE),
            chat(text("fight"), stream=True),
            begun,
        )
        for body in bodies:
            answer = await ask(http, body)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["code"] == "ContentRefused"
            assert error["message"] == "content refused by the operator's moderation: violence"
        assert engine.asked == []
        assert (await ask(http, chat(text("how to cook")))).status_code == 200
        told = (await http.get("/metrics")).text
    assert 'llava:events_total{event="moderation_refused"} 4.0' in told
    assert set(fake.keys) == {"Bearer the-key"}
    assert fake.asked[0] == {"input": "how to fight", "model": "omni"}
    assert [part["type"] for part in fake.asked[1]["input"]] == ["text", "image_url"]


async def test_an_answer_is_judged_when_it_is_whole_and_marked():
    engine = FakeEngine()
    request = Request("m", (user("hello"),))
    fake = FakeModeration(find=answer_to(request).split()[3])
    async with moderated(fake, engine) as http:
        whole = (await ask(http, chat(text("hello")))).json()["choices"][0]
        streamed = (await ask(http, chat(text("hello"), stream=True))).text
        told = (await http.get("/metrics")).text
    marked = {"flagged": True, "categories": ["violence"]}
    assert whole["moderation"] == marked
    assert whole["message"]["content"] == "".join(f"{word} " for word in answer_to(request).split()[:5])
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert events[-1]["choices"][0]["moderation"] == marked
    assert 'event="moderation_flagged"} 2.0' in told


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_held_back_shows_nothing_of_what_is_flagged(stream: bool):
    engine = FakeEngine()
    words = answer_to(Request("m", (user("hello"),))).split()
    fake = FakeModeration(find=words[3])
    async with moderated(fake, engine, hold_answers=True) as http:
        refused = await ask(http, chat(text("hello"), stream=stream))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "ContentRefused")
        assert "the answer was withheld by the operator's moderation: violence" in refused.text
        assert not any(word in refused.text for word in words[:5])
        passed = await ask(http, chat(text("hello"), stream=stream, max_tokens=2))
        assert passed.status_code == 200
        assert all(word in passed.text for word in words[:2])
        told = (await http.get("/metrics")).text
    assert 'event="moderation_withheld"} 1.0' in told


@pytest.mark.parametrize("fail_open", [False, True])
async def test_a_judge_that_fails_at_an_answers_end_has_it_withheld_unless_told_so(fail_open: bool):
    fake, engine = FakeModeration(), FakeEngine()
    engine.hold.clear()
    async with moderated(fake, engine, fail_open=fail_open, hold_answers=True) as http:
        asking = asyncio.create_task(ask(http, chat(text("hello"))))
        await until(lambda: engine.running == 1)
        fake.status, fake.body = 500, "broken"
        engine.hold.set()
        assert (await asking).status_code == (200 if fail_open else 503)


async def test_earlier_turns_are_judged_once():
    fake, engine = FakeModeration(), FakeEngine()
    async with moderated(fake, engine) as http:
        turns = [{"role": "user", "content": "one"}]
        for number in range(3):
            assert (await ask(http, chat(messages=turns))).status_code == 200
            turns = [
                *turns,
                {"role": "assistant", "content": f"said {number}"},
                {"role": "user", "content": f"{number}?"},
            ]
    questions = [asked["input"] for asked in fake.asked[::2]]
    assert questions == ["one", "said 0\n\n0?", "said 1\n\n1?"]


BROKEN = {
    "an error": FakeModeration(status=500),
    "no JSON": FakeModeration(body="<html>"),
    "another shape": FakeModeration(body='{"ok": true}'),
    "no verdict": FakeModeration(body='{"results": []}'),
    "silence": FakeModeration(delay_s=60),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("fail_open", [False, True])
async def test_a_judge_that_fails_lets_nothing_pass_unless_told_so(kind: str, fail_open: bool):
    engine = FakeEngine()
    judge_s = 0.3 if kind == "silence" else 30
    async with moderated(BROKEN[kind], engine, fail_open=fail_open, judge_s=judge_s) as http:
        answer = await ask(http, chat(text("hello")))
        told = (await http.get("/metrics")).text
    assert 'event="moderation_failed"' in told
    if fail_open:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ModerationFailed")
        assert answer.headers["retry-after"]
        assert engine.asked == []


def by_words(text: str, pictures: Sequence[str]) -> dict[str, bool]:
    return {"violence": "fight" in text, "pictures": len(pictures) > 1}


async def by_waiting(text: str, pictures: Sequence[str]) -> list[str]:
    await asyncio.sleep(0)
    return ["x" * 1000] if "fight" in text else []


def by_failing(text: str, pictures: Sequence[str]) -> list[str]:
    raise ZeroDivisionError


async def test_a_function_of_the_operators_own_judges_as_well():
    engine = FakeEngine()
    for function in (by_words, by_waiting):
        judge = Moderation(LocalClassifier(named_classifier(f"{__name__}:{function.__name__}")))
        with pytest.raises(ContentRefused, match=r"violence|x{80}$"):
            async for _ in judge.stream(engine.generate, Request("m", (user("fight"),))):
                pass
        assert [chunk async for chunk in judge.stream(engine.generate, Request("m", (user("cook"),)))]
    failing = Moderation(LocalClassifier(by_failing))
    with pytest.raises(ModerationFailed):
        async for _ in failing.stream(engine.generate, Request("m", (user("cook"),))):
            pass


def test_flags_that_make_no_sense_are_refused():
    assert moderation(None, None, None, None, None) is None
    for url, function in (
        ("ftp://x", None),
        ("http://x", "a:b"),
        (None, "no.such.module:f"),
        (None, "json:no_such"),
        (None, "json:__name__"),
        (None, "json"),
        (None, ":f"),
    ):
        with pytest.raises(BadRequest, match="--moderation"):
            moderation(url, None, function, None, None)


async def test_the_page_shows_and_keeps_what_was_refused_and_what_was_flagged(tmp_path: Path):
    engine = FakeEngine()
    flagged_word = answer_to(Request("m", (user("hello"),))).split()[2]
    judge = Moderation(LocalClassifier(lambda text, _: [word for word in ("fight", flagged_word) if word in text]))

    class Source:
        async def models(self) -> list[Any]:
            return []

        def stream(self, request: Request) -> Any:
            return judge.stream(engine.generate, request)

    kept: list[Any] = []
    room = Room(
        Source(), PictureDesk(tmp_path), "me", RoomTimings(update_s=0.001), keep=lambda chat, _: kept.append(chat)
    )
    for question, state, code in (("fight", "failed", "ContentRefused"), ("hello", "done", "ContentFlagged")):
        await room.ask(question, (), "m", Settings())
        async for _ in room.follow("reader"):
            pass
        answer = kept[-1].turns[-1].answer
        assert (answer.state, answer.notice.code) == (state, code)
        assert "moderation" in answer.notice.message
        await room.change(lambda chat: type(chat)())
    await room.aclose()
