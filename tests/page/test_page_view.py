"""Drawing a chat costs everybody else little, whatever a model says and whoever brings in what."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from llava_core.engines.echo import EchoEngine
from serve.page import view
from serve.page.actions import Rooms
from serve.page.feedback import Feedback
from serve.page.history import owner_of
from serve.page.pictures import PictureDesk
from serve.page.session import Answer, Chat, Turn
from serve.page.view import Drawer
from tests.page.sources import EchoSource

ME = "m" * 32


def chat(text: str, state: Any = "streaming") -> Chat:
    return Chat((Turn("t1", "question", (), (Answer("a1", "m", state, text),)),))


def test_a_growing_answer_that_takes_long_to_render_is_rendered_seldom() -> None:
    now, spent, cost = 0.0, 0.0, 0.0

    def computed() -> float:
        nonlocal spent
        spent += cost
        return spent

    drawer = Drawer(lambda: now, computed)

    def shown(text: str) -> str:
        return "".join(drawer.blocks(chat(text).turns[0].answer))

    assert "one" in shown("one")
    assert "two" in shown("one two"), "what costs nothing is rendered at once"
    cost = 0.5
    assert "three" in shown("one two three")
    now = 4.0
    assert "four" not in shown("one two three four")
    now = 5.0
    assert "four" in shown("one two three four")
    assert "five" not in shown("one two three four five")
    # The end is always shown whole.
    assert "five" in "".join(drawer.blocks(chat("one two three four five", "done").turns[0].answer))


async def test_a_long_chat_that_was_brought_in_is_drawn_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_by: set[threading.Thread] = set()
    plain = view.blocks

    def noting(text: str) -> tuple[str, ...]:
        drawn_by.add(threading.current_thread())
        return plain(text)

    monkeypatch.setattr(view, "blocks", noting)
    rooms = Rooms(EchoSource(EchoEngine("echo")), PictureDesk(tmp_path), Feedback(None))
    asked = '{"role": "user", "content": "hi"}, {"role": "assistant", "content": "%s"}'
    for room, words, in_loop in (("s" * 32, 10, True), ("l" * 32, 20_000, False)):
        await rooms.bring_in(room, owner_of(ME), "chat.json", f"[{asked % ('word ' * words)}]")
        message = {"do": "open", "room": room, "owner": ME}
        shown = await asyncio.gather(*(rooms.tell(message) for _ in range(3)))
        assert all("word" in each["turns"][0]["answer"]["blocks"][0] for each in shown)
        assert (threading.main_thread() in drawn_by) == in_loop
        drawn_by.clear()
    await rooms.aclose()
