"""The mixed requests of a soak, and what may come of each kind."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

import aiohttp

from serve.bench.plan import draw_picture

MODEL = "soak"
_ANSWER_S = 300.0

EXPECTED = {"chat": ("ok",), "stream": ("ok",), "picture": ("ok",), "left": ("left", "ok"), "bad picture": ("400",)}


class Bodies:
    """Requests to choose from; drawing pictures anew for each would measure us."""

    def __init__(self, words: int, pictures: float, aborted: float, bad: float) -> None:
        self._words, self._shown, self._aborted, self._broken = words, pictures, aborted, bad
        self._pictures = [draw_picture((64 + 16 * number, 64), f"soak/{number}") for number in range(8)]
        whole = base64.b64decode(self._pictures[0].partition(",")[2])
        self._bad = [_data_url(data) for data in (whole[:200], b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(64), b"")]

    def draw(self, draws: random.Random) -> tuple[str, bytes]:
        chance = draws.random()
        if chance < self._broken:
            return "bad picture", self._body(draws, draws.choice(self._bad), stream=draws.random() < 0.5)
        picture = draws.choice(self._pictures) if draws.random() < self._shown else None
        if chance < self._broken + self._aborted:
            # Long enough that nobody reads it to its end.
            return "left", self._body(draws, picture, stream=True, max_tokens=300, ignore_eos=True)
        if picture is not None:
            return "picture", self._body(draws, picture, stream=draws.random() < 0.5)
        stream = draws.random() < 0.5
        return "stream" if stream else "chat", self._body(draws, None, stream=stream)

    def _body(self, draws: random.Random, picture: str | None, *, stream: bool, **more: object) -> bytes:
        words = " ".join(f"word{draws.randrange(10_000)}" for _ in range(draws.randint(1, 2 * self._words)))
        content: list[dict[str, Any]] = [{"type": "text", "text": words}]
        if picture is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture}})
        fields = {"max_tokens": draws.randint(1, self._words), "stream": stream, "temperature": 0, **more}
        if draws.random() < 0.05:
            fields["n"] = 2
        messages = [{"role": "user", "content": content}]
        return json.dumps({"model": MODEL, "messages": messages, **fields}).encode()


async def ask_once(api: str, kind: str, body: bytes, http: aiohttp.ClientSession, leave_after: int) -> tuple[str, str]:
    """What came of it, and what was said where that was an error. One of the kind "left" is closed after so many
    pieces, or before the first."""
    headers = {"Content-Type": "application/json"}
    try:
        async with asyncio.timeout(_ANSWER_S):
            asking = http.post(f"{api}/v1/chat/completions", data=body, headers=headers)
            if kind == "left" and leave_after == 0:
                task = asyncio.ensure_future(asking)
                await asyncio.sleep(0.002)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return "left", ""
            async with asking as answer:
                if kind == "left":
                    for _ in range(leave_after):
                        if not await answer.content.readany():
                            return "ok", ""
                    answer.close()
                    return "left", ""
                text = await answer.read()
                if answer.status != 200:
                    return str(answer.status), text[:300].decode(errors="replace")
                whole = b"[DONE]" in text or b'"finish_reason"' in text
                return ("ok", "") if whole else ("cut short", text[-300:].decode(errors="replace"))
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__, str(error)


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
