"""Chats with a page over the wire that its own script speaks: uploads, messages and streams of events."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import httpx

from llava_core.errors import EngineFailure

_PATIENCE_S = 900.0
_API = "/gradio_api"


class PageChat(Protocol):
    """One person's chat with a page, in a browser of its own."""

    async def ask(self, text: str, pictures: Sequence[Path] = ()) -> str:
        """The answer's text once it is there."""
        ...

    async def aclose(self) -> None: ...


@dataclass
class _Wire:
    http: httpx.AsyncClient
    session: str = field(default_factory=lambda: secrets.token_hex(6))

    @classmethod
    def to(cls, url: str) -> Self:
        return cls(httpx.AsyncClient(base_url=url, trust_env=False, timeout=httpx.Timeout(_PATIENCE_S)))

    async def dependency(self, event: str, marks: str) -> int:
        """The number under which the page takes an event of the component in whose properties `marks` stands."""
        config = (await self.http.get("/config")).json()
        props = {component["id"]: json.dumps(component["props"]) for component in config["components"]}
        for dependency in config["dependencies"]:
            for target, name in dependency["targets"]:
                if name == event and marks in props.get(target, ""):
                    return int(dependency["id"])
        raise EngineFailure(f"the page has no {event!r} of anything with {marks!r}; is it of another version?")

    async def upload(self, path: Path) -> str:
        data = await asyncio.to_thread(path.read_bytes)
        answer = await self.http.post(f"{_API}/upload", files={"files": (path.name, data, "image/png")})
        return str(answer.raise_for_status().json()[0])

    async def run(self, number: int, data: list[Any], event: Any = None) -> AsyncIterator[Any]:
        """What a call gives out, as the page sends it: a whole value first, then what differs."""
        body = {"data": data, "event_data": event, "fn_index": number, "trigger_id": None, "session_hash": self.session}
        joined = (await self.http.post(f"{_API}/queue/join", json=body)).raise_for_status().json()
        query = {"session_hash": self.session}
        async with self.http.stream("GET", f"{_API}/queue/data", params=query) as events:
            async for line in events.aiter_lines():
                if not line.startswith("data:"):
                    continue
                told = json.loads(line[5:])
                if told.get("event_id") not in (None, joined["event_id"]):
                    continue
                if told["msg"] == "process_generating":
                    yield told["output"].get("data")
                elif told["msg"] == "process_completed":
                    if not told["success"]:
                        raise EngineFailure(f"the page failed: {str(told.get('output'))[:300]}")
                    yield told["output"].get("data")
                    return
                elif told["msg"] in ("close_stream", "unexpected_error"):
                    raise EngineFailure(f"the page hung up: {line[:300]}")


class OurChat:
    """As `static/live.js` does it."""

    def __init__(self, url: str, model: str) -> None:
        self._wire = _Wire.to(url)
        self._model = model
        self._chat = {"room": secrets.token_urlsafe(24), "owner": secrets.token_urlsafe(24), "place": "chat"}

    async def ask(self, text: str, pictures: Sequence[Path] = ()) -> str:
        paths = [await self._wire.upload(path) for path in pictures]
        message = {
            "do": "ask",
            **self._chat,
            "text": text,
            "pictures": [{"path": path, "name": Path(path).name} for path in paths],
            "model": self._model,
            "settings": {"temperature": 0},
        }
        (await self._wire.http.post("/live/act", json=message)).raise_for_status()
        blocks: list[str] = []
        async for told in self._follow():
            if "turns" in told:
                answer = told["turns"][-1]["answer"]
                if answer["state"] == "done":
                    return str(answer["text"])
                if not told["running"]:
                    raise EngineFailure(f"the answer is {answer['state']}: {answer.get('notice')}")
                blocks = answer["blocks"]
            else:
                blocks[told["from"] :] = told["blocks"]
        raise EngineFailure(f"the page's stream ended at {str(blocks)[-200:]!r}")

    async def _follow(self) -> AsyncIterator[Any]:
        async with self._wire.http.stream("POST", "/live/follow", json={"rooms": [self._chat]}) as events:
            async for line in events.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    async def aclose(self) -> None:
        await self._wire.http.aclose()


class NaiveChat:
    """As Gradio's own frontend does it with a Chatbot: its whole value goes back with every question."""

    def __init__(self, url: str) -> None:
        self._wire = _Wire.to(url)
        self._history: list[Any] = []
        self._number: int | None = None

    async def ask(self, text: str, pictures: Sequence[Path] = ()) -> str:
        if self._number is None:
            self._number = await self._wire.dependency("submit", "multiple")
        files = [
            {"path": await self._wire.upload(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
            for path in pictures
        ]
        value: Any = None
        async for told in self._wire.run(self._number, [{"text": text, "files": files}, self._history]):
            value = told[0] if value is None else _changed(value, told[0])
        self._history = value
        return _text(value[-1]["content"])

    async def aclose(self) -> None:
        await self._wire.http.aclose()


def _changed(value: Any, told: Any) -> Any:
    """Gradio tells what differs as a list of operations, and the whole value at the end or where all differs."""
    if not (isinstance(told, list) and all(isinstance(one, list) and len(one) == 3 for one in told)):
        return told
    for action, path, new in told:
        if not path:
            value = new if action == "replace" else value + new
            continue
        place = value
        for step in path[:-1]:
            place = place[step]
        last = path[-1]
        if action == "replace":
            place[last] = new
        elif action == "append":
            place[last] += new
        elif action == "add" and isinstance(place, list):
            place.insert(int(last), new)
        elif action == "add":
            place[last] = new
        else:
            del place[last]
    return value


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(map(_text, content))
    return str(content.get("text", "")) if isinstance(content, dict) else str(content)
