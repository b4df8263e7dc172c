"""A look into a model over HTTP, from a worker's own routes to the gateway's, with sentences for what cannot be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from llava_core.chat_protocol import write_call
from llava_core.engines.echo import EchoEngine
from llava_core.errors import BadRequest
from llava_core.inspection import (
    Box,
    Grid,
    Looks,
    PictureLooks,
    PromptPiece,
    SeenAttention,
    SeenPicture,
    SeenPrompt,
    Tile,
)
from llava_core.types import Begun, ModelInfo, Request, user
from serve.inspecting import inspect_routes
from serve.remote_inspector import ATTENTION, ATTENTION_PATH, PROMPT, PROMPT_PATH
from serve.worker_app import create_app

BOX = Box(0.0, 0.0, 4.0, 2.0)
PICTURE = SeenPicture(4, 2, 1, 4, (Tile("whole", BOX, 8, 8, 4),), (Grid(0, 2, 2, 2, BOX),))


class Seer(EchoEngine):
    """Tells what it was asked."""

    def __init__(self) -> None:
        super().__init__("seer")
        self.asked: list[tuple[Any, ...]] = []

    @property
    def info(self) -> ModelInfo:
        return ModelInfo("seer", "test", 100, inspects=True)

    async def look(self, request: Request) -> SeenPrompt:
        self.asked.append((request,))
        return SeenPrompt("seer", 5, (PromptPiece("text", 1, ("Hi",)), PromptPiece("picture", 4, (), 0)), (PICTURE,))

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention:
        self.asked.append((request, first, count))
        row = [0.1, 0.2, 0.0, 0.3]
        looks = PictureLooks(Looks.pack([row, row]), Looks.pack([row]), Looks.pack([row, row, row]))
        return SeenAttention(first, count, 2, (looks,), 5)


@asynccontextmanager
async def worker(engine: EchoEngine, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, token=token)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        yield http
    await engine.aclose()


def body(request: Request) -> dict[str, Any]:
    return {"content": write_call(request, stream=False), "headers": {"Content-Type": "application/json"}}


BEGUN = Request("seer", (user("Hi"),), begun=Begun("It is.", (7, 8, 9)))


async def test_the_prompt_and_a_words_attention_travel_whole() -> None:
    engine = Seer()
    async with worker(engine) as http:
        seen = PROMPT.validate_json((await http.post(PROMPT_PATH, **body(BEGUN))).content)
        assert seen.pictures == (PICTURE,)
        looked = await http.post(f"{ATTENTION_PATH}?first=1&count=2", **body(BEGUN))
        found = ATTENTION.validate_json(looked.content)
        assert found.pictures[0].rollout.unpack()[0] == pytest.approx([0.1, 0.2, 0.0, 0.3], abs=1e-5)
    (_, (request, first, count)) = engine.asked
    assert (first, count) == (1, 2)
    assert request.begun == BEGUN.begun
    assert request.messages == BEGUN.messages


async def test_an_engine_that_cannot_be_looked_into_is_named_in_a_sentence() -> None:
    async with worker(EchoEngine("echo")) as http:
        answer = await http.post(PROMPT_PATH, **body(Request("echo", (user("Hi"),))))
    assert answer.status_code == 400
    assert "'echo' is run by an engine that does not tell" in answer.json()["error"]["message"]


@pytest.mark.parametrize("query", ["first=-1", "first=x", "count=1e9", "first=99999999999"])
async def test_a_token_that_is_no_number_is_refused(query: str) -> None:
    async with worker(Seer()) as http:
        answer = await http.post(f"{ATTENTION_PATH}?{query}", **body(BEGUN))
    assert answer.status_code == 400
    assert "number of a token" in answer.json()["error"]["message"]


async def test_what_a_chat_needs_a_look_needs_too() -> None:
    async with worker(Seer(), token="secret") as http:
        assert (await http.post(PROMPT_PATH, **body(BEGUN))).status_code == 401
        shown = {"Authorization": "Bearer secret"}
        wrong = await http.post(PROMPT_PATH, content=b"[", headers={**shown, "Content-Type": "application/json"})
        assert wrong.status_code == 400
        plain = await http.post(PROMPT_PATH, content=json.dumps({}), headers={**shown, "Content-Type": "text/plain"})
        assert plain.status_code == 415
        other = await http.post(
            PROMPT_PATH,
            **(body(Request("other", (user("Hi"),))) | {"headers": {**shown, "Content-Type": "application/json"}}),
        )
        assert other.status_code == 404


def test_the_routes_are_the_ones_that_are_asked_for() -> None:
    paths = {route.path for route in inspect_routes(Seer()).routes}  # type: ignore[attr-defined]
    assert paths == {PROMPT_PATH, ATTENTION_PATH}


def test_refusals_are_errors_of_the_caller() -> None:
    from serve.remote_inspector import refusal

    assert isinstance(refusal("x"), BadRequest)
