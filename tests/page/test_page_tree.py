"""A chat with all its branches becomes rows and comes back from them as it was."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llava_core.types import Usage
from serve.page import session
from serve.page.session import Chat, Figures, Notice, Picture
from serve.page.tree import messages_of, title_of, turns_of
from serve.store.messages import shown_path
from serve.store.records import KeptPicture

CAT = Picture("cat.png", "/up/cat.png", "gradio_api/file=/up/cat.png", "image/png", 10)


def known(kept: KeptPicture) -> Picture:
    assert (kept.name, kept.file) == (CAT.name, CAT.path)
    return CAT


def answered(chat: Chat, **changes: Any) -> Chat:
    running = chat.running
    assert running
    return session.update(chat, running.id, **({"text": running.id, "state": "done"} | changes))


def grown(moves: list[int], seed: int) -> Chat:
    """A chat after some moves of a person who tries everything."""
    dice = random.Random(seed)
    chat = Chat()
    for move in moves:
        turn = dice.choice(chat.turns) if chat.turns else None
        if turn is None or move == 0:
            chat = answered(session.ask(chat, f"q{chat.serial}", (CAT,) if dice.random() < 0.3 else (), "m"))
        elif move == 1:
            chat = answered(session.edit(chat, turn.id, f"e{chat.serial}", (), "m"))
        elif move == 2:
            chat = answered(session.retry(chat, "n", turn.id))
        elif move == 3:
            chat = session.show(chat, turn.id, dice.randrange(len(turn.answers)))
        elif move == 4:
            chat = session.show_wording(chat, turn.id, dice.randrange(len(turn.earlier) + len(turn.later) + 1))
        else:
            chat = session.undo(chat)
    return chat


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=25), st.integers(0, 1000))
def test_any_chat_comes_back_as_it_was(moves: list[int], seed: int) -> None:
    chat = grown(moves, seed)
    rows = messages_of(chat.turns)
    assert turns_of(rows, known) == chat.turns
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row.parent is None or row.parent in keys[:place] for place, row in enumerate(rows))
    path = [row.key for row in shown_path(rows)]
    assert path == [key for turn in chat.turns for key in (turn.id, turn.answer.id)]


def test_figures_notices_and_what_was_asked_with_come_back() -> None:
    chat = answered(
        session.ask(Chat(), "one", (CAT,), "m"),
        figures=Figures(0.5, 1.5, Usage(10, 3, 4, 2)),
        finish_reason="length",
        rating="dislike",
        flagged=True,
        parameters={"temperature": 0.2, "seed": 11, "system": "Be brief."},
    )
    failed = answered(
        session.retry(chat, "n"), text="half", state="failed", notice=Notice("WorkerLost", "it went", retryable=True)
    )
    rows = messages_of(failed.turns)
    assert turns_of(rows, known) == failed.turns
    assert rows[1].generation is not None
    assert (rows[1].generation.seed, rows[1].generation.parameters["temperature"]) == (11, 0.2)


def test_an_answer_that_was_on_its_way_is_marked_as_cut_off_and_can_go_on() -> None:
    running = session.update(session.ask(Chat(), "one", (), "m"), "a1", state="streaming", text="half")
    (turn,) = turns_of(messages_of(running.turns), known)
    assert (turn.answer.state, turn.answer.text) == ("failed", "half")
    assert turn.answer.notice is not None
    assert turn.answer.notice.code == "Interrupted"
    assert session.resume(Chat((turn,), 1)).running is not None


def test_a_chat_is_called_by_its_first_question_or_picture() -> None:
    assert title_of(session.ask(Chat(), "  What\nis   it? ", (), "m").turns) == "What is it?"
    assert title_of(session.ask(Chat(), "", (CAT,), "m").turns) == "cat.png"
    assert len(title_of(session.ask(Chat(), "long " * 100, (), "m").turns)) <= 80
