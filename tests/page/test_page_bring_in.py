"""Chats come back out of the files they were exported to; what is no chat is refused with a sentence."""

from __future__ import annotations

import base64
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_core.errors import BadImage, BadRequest
from llava_core.types import Usage
from serve.page import session
from serve.page.bring_in import BroughtIn, read_chat
from serve.page.export import to_json, to_markdown
from serve.page.pictures import PictureDesk
from serve.page.session import Chat, Figures, Notice, Picture
from tests.page.test_page_tree import answered, grown

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(data, "PNG")
    return data.getvalue()


DATA = {"/up/cat.png": png("teal"), "/up/dog.png": png("gold")}
URLS = {path: f"data:image/png;base64,{base64.b64encode(data).decode()}" for path, data in DATA.items()}
CAT = Picture("cat.png", "/up/cat.png", "gradio_api/file=/up/cat.png", "image/png", 10)
DOG = Picture("dog.png", "/up/dog.png", "gradio_api/file=/up/dog.png", "image/png", 12)


def take_in(name: str, data: bytes) -> Picture:
    return next(picture for picture in (CAT, DOG) if DATA[picture.path] == data)


def there_and_back(chat: Chat, kind: str, system: str = "") -> BroughtIn:
    write, ending = (to_json, "json") if kind == "json" else (to_markdown, "md")
    return read_chat(f"chat.{ending}", write(chat, URLS, system, NOON), take_in)


def shape(chat: Chat) -> list[Any]:
    """Everything about the chat but the names of its messages."""

    def of(turns: tuple[session.Turn, ...]) -> list[Any]:
        return [
            (
                turn.text,
                turn.pictures,
                turn.shown,
                [
                    (a.model, a.text, a.state, a.notice, a.figures, a.finish_reason, a.rating, a.flagged, a.parameters)
                    for a in turn.answers
                ],
                [of(answer.follows) for answer in turn.answers],
                [of(wording) for wording in turn.earlier],
                [of(wording) for wording in turn.later],
            )
            for turn in turns
        ]

    return of(chat.turns)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 1000))
def test_json_brings_back_every_branch(moves: list[int], seed: int) -> None:
    chat = grown(moves, seed)
    if chat.turns:
        assert shape(there_and_back(chat, "json").chat) == shape(chat)


def full_chat() -> Chat:
    chat = answered(
        session.ask(Chat(), "What is it?", (CAT, DOG), "m"),
        figures=Figures(0.5, 1.5, Usage(10, 3, 4, 2)),
        finish_reason="length",
        rating="like",
        flagged=True,
        parameters={"temperature": 0.2, "seed": 11},
    )
    chat = answered(session.edit(chat, chat.turns[0].id, "What are they?", (CAT,), "m"), text="A cat.")
    notice = Notice("WorkerLost", "it went", retryable=True)
    return answered(session.ask(chat, "And?", (), "m"), text="half", state="failed", notice=notice)


def test_json_brings_back_figures_pictures_and_the_system_prompt() -> None:
    found = there_and_back(full_chat(), "json", "Be brief.")
    assert shape(found.chat) == shape(full_chat())
    assert found.system == "Be brief."
    ids = {turn.id for turn in found.chat.turns}
    assert session.ask(found.chat, "more", (), "m").turns[-1].id not in ids


def test_parameters_that_are_no_numbers_are_left_out() -> None:
    chat = answered(session.ask(Chat(), "hi", (), "m"), parameters={"seed": 11, "temperature": 0.2})
    text = to_json(chat, URLS, "", NOON).replace('"temperature": 0.2', '"temperature": NaN, "top_p": Infinity')
    assert "NaN" in text
    assert read_chat("chat.json", text, take_in).chat.turns[0].answer.parameters == {"seed": 11}


@pytest.mark.parametrize(
    "said",
    [
        "plain",
        "## Question",
        "a\n## Question\nb",
        "\\## Question",
        "## echo\n\n### more",
        "*No answer*\n\n- a\n- b",
        "a\n\n\nb",
    ],
)
def test_markdown_brings_back_what_is_shown_whatever_was_said(said: str) -> None:
    chat = answered(session.ask(Chat(), said, (CAT, DOG), "m/7b"), text=said, finish_reason="stop")
    chat = answered(session.ask(chat, "next", (), "n"), text="", state="stopped")
    found = there_and_back(chat, "markdown", "Be brief.\n\nAnd kind.")
    assert shape(found.chat) == shape(chat)
    assert found.system == "Be brief.\n\nAnd kind."


def test_markdown_brings_back_how_an_answer_ended() -> None:
    for changes in (
        {"state": "stopped"},
        {"finish_reason": "length"},
        {"state": "failed", "notice": Notice("WorkerLost", "it went", retryable=True)},
    ):
        chat = answered(session.ask(Chat(), "one", (), "m"), text="half", **changes)
        assert shape(there_and_back(chat, "markdown").chat) == shape(chat)


def test_messages_of_the_api_become_a_chat() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": URLS[CAT.path]}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And?"},
    ]
    for document in (messages, {"model": "m", "messages": messages}):
        found = read_chat("chat.json", json.dumps(document), take_in)
        assert [(turn.text, turn.answer.text) for turn in found.chat.turns] == [("What is it?", "A cat."), ("And?", "")]
        assert found.chat.turns[0].pictures[0].path == CAT.path
        assert found.system == "Be brief."


def turns(**changes: Any) -> str:
    row = {"question": "q", "pictures": [], "answers": [{"model": "m", "text": "a"}], **changes}
    return json.dumps({"format": "llava-serve-chat/1", "messages": [], "turns": [row]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no chat",
        "[]",
        "7",
        "null",
        '{"messages": 7}',
        '{"messages": [{"role": "wizard", "content": "x"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        "[" * 5000,
        turns(answers=[7]),
        turns(pictures=[{"name": "x", "image": 3}]),
        turns(shown="x"),
        turns(question=None, answers=None),
        turns(answers=[{"model": "m", "text": "a", "figures": {"first_token_s": "x"}}]),
    ],
)
def test_what_is_no_chat_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(BadRequest, match="bring in a chat that was exported here"):
        read_chat("file.json", text, take_in)


@pytest.mark.parametrize(
    "url", ["https://example.com/cat.png", "data:image/png;base64,!!", "data:text/html;base64,PGI+"]
)
def test_a_picture_that_is_not_in_the_file_is_named(url: str, tmp_path: Path) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    text = json.dumps([{"role": "user", "content": content}])
    with pytest.raises(BadImage, match="picture 1"):
        read_chat("chat.json", text, PictureDesk(tmp_path).take_in)


def test_a_file_that_only_says_it_is_a_picture_is_refused(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(b"<html>").decode()
    text = json.dumps([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    with pytest.raises(BadImage, match="none that can be read"):
        read_chat("chat.json", text, PictureDesk(tmp_path).take_in)
    assert list(tmp_path.iterdir()) == []


def test_branches_without_end_are_refused() -> None:
    row: dict[str, Any] = {"question": "q", "answers": [{"model": "m", "text": "a"}]}
    for _ in range(60):
        row = {"question": "q", "answers": [{"model": "m", "text": "a"}], "earlier": [[row]]}
    with pytest.raises(BadRequest, match="branches"):
        read_chat("chat.json", json.dumps({"format": "llava-serve-chat/1", "turns": [row]}), take_in)
