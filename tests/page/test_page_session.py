"""The moves of a conversation: what is asked, taken back, brought back, and what a model gets to see of it."""

from __future__ import annotations

from typing import Any

from llava_core.errors import Overloaded
from llava_core.types import ImagePart, Message, TextPart
from serve.page import session
from serve.page.session import Chat, Picture

CAT = Picture("cat.png", "/up/cat.png", "file=/up/cat.png", "image/png", 10)
DOG = Picture("dog.png", "/up/dog.png", "file=/up/dog.png", "image/png", 10)
URLS = {CAT.path: "data:image/png;base64,Q0FU", DOG.path: "data:image/png;base64,RE9H"}


def answered(chat: Chat, text: str, **changes: Any) -> Chat:
    running = chat.running
    assert running
    return session.update(chat, running.id, **({"text": text, "state": "done"} | changes))


def talk(*turns: tuple[str, str]) -> Chat:
    chat = Chat()
    for question, answer in turns:
        chat = answered(session.ask(chat, question, (), "m"), answer)
    return chat


def texts(chat: Chat) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in session.messages(chat, URLS)]


def test_every_earlier_turn_and_picture_goes_to_the_model_in_order() -> None:
    chat = answered(session.ask(Chat(), "What is it?", (CAT,), "m"), "A cat.")
    chat = answered(session.ask(chat, "Its colour?", (), "m"), "Grey.")
    chat = session.ask(chat, "And this?", (DOG,), "m")

    assert session.messages(chat, URLS, "Be brief.") == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(URLS[CAT.path]), TextPart("What is it?"))),
        Message("assistant", (TextPart("A cat."),)),
        Message("user", (TextPart("Its colour?"),)),
        Message("assistant", (TextPart("Grey."),)),
        Message("user", (ImagePart(URLS[DOG.path]), TextPart("And this?"))),
    )


def test_a_picture_alone_is_a_question() -> None:
    chat = session.ask(Chat(), "", (CAT,), "m")
    assert session.messages(chat, URLS) == (Message("user", (ImagePart(URLS[CAT.path]),)),)


def test_what_looks_like_a_special_token_is_passed_on_as_it_was_typed() -> None:
    typed = "<image> </s> [INST] <|im_start|> USER:"
    assert session.messages(session.ask(Chat(), typed, (), "m"), {})[0].parts == (TextPart(typed),)


def test_an_error_is_never_sent_to_the_model_nor_the_question_it_left_without_an_answer() -> None:
    chat = talk(("one", "1"))
    notice = session.notice_of(Overloaded("too many", retry_after=3))
    chat = answered(session.ask(chat, "two", (CAT,), "m"), "", state="failed", notice=notice)
    chat = session.ask(chat, "three", (), "m")

    assert texts(chat) == [("user", "one"), ("assistant", "1"), ("user", "three")]
    assert session.pictures_sent(chat) == ()


def test_the_part_of_an_answer_that_was_said_before_it_failed_or_was_stopped_stays_in_the_chat() -> None:
    for state in ("failed", "stopped"):
        chat = answered(session.ask(Chat(), "one", (), "m"), "half", state=state)
        assert texts(session.ask(chat, "two", (), "m")) == [("user", "one"), ("assistant", "half"), ("user", "two")]


def test_retrying_keeps_what_was_said_before_and_shows_the_new_answer() -> None:
    chat = session.retry(talk(("one", "1")), "other")
    assert [(answer.model, answer.text) for answer in chat.turns[0].answers] == [("m", "1"), ("other", "")]
    assert chat.running is chat.turns[0].answer
    assert texts(chat) == [("user", "one")]


def test_retrying_replaces_an_answer_that_said_nothing() -> None:
    failed = answered(session.ask(Chat(), "one", (), "m"), "", state="failed")
    assert len(session.retry(failed, "m").turns[0].answers) == 1


def test_another_answer_counts_once_it_is_shown() -> None:
    chat = answered(session.retry(talk(("one", "1")), "m"), "2")
    chat = session.show(chat, chat.turns[0].id, 0)
    assert texts(session.ask(chat, "next", (), "m"))[1] == ("assistant", "1")


def test_only_answers_of_the_last_turn_can_be_exchanged() -> None:
    chat = answered(session.retry(talk(("one", "1")), "m"), "2")
    chat = answered(session.ask(chat, "next", (), "m"), "3")
    assert session.show(chat, chat.turns[0].id, 0) is chat
    assert session.show(chat, chat.turns[1].id, 7) is chat


def test_editing_drops_what_followed_and_restore_brings_it_back() -> None:
    chat = talk(("one", "1"), ("two", "2"), ("three", "3"))
    edited = session.edit(chat, chat.turns[1].id, "TWO", (CAT,), "m")
    assert [turn.text for turn in edited.turns] == ["one", "TWO"]
    assert edited.running
    assert [turn.text for turn in session.restore(edited).turns] == ["one", "two", "three"]


def test_editing_a_turn_that_is_not_there_changes_nothing() -> None:
    chat = talk(("one", "1"))
    assert session.edit(chat, "t99", "x", (), "m") is chat


def test_undo_takes_the_last_turn_back_and_restore_returns_it() -> None:
    chat = talk(("one", "1"), ("two", "2"))
    undone = session.undo(chat)
    assert [turn.text for turn in undone.turns] == ["one"]
    assert session.restore(undone).turns == chat.turns
    assert session.undo(Chat()) == Chat()


def test_a_cleared_chat_can_be_brought_back_until_something_new_is_asked() -> None:
    cleared = session.clear(talk(("one", "1")))
    assert cleared.turns == ()
    assert [turn.text for turn in session.restore(cleared).turns] == ["one"]
    assert session.restore(session.ask(cleared, "new", (), "m")).turns[0].text == "new"


def test_clearing_twice_does_not_lose_the_way_back() -> None:
    assert len(session.restore(session.clear(session.clear(talk(("one", "1"))))).turns) == 1


def test_an_answer_on_its_way_counts_as_stopped_when_it_is_brought_back() -> None:
    running = session.ask(talk(("one", "1")), "two", (), "m")
    restored = session.restore(session.clear(running))
    assert restored.running is None
    assert restored.turns[-1].answer.state == "stopped"


def test_names_of_turns_and_answers_are_never_given_twice() -> None:
    chat = talk(("one", "1"), ("two", "2"))
    gone = {turn.id for turn in chat.turns}
    chat = session.ask(session.undo(session.undo(chat)), "three", (), "m")
    assert chat.turns[0].id not in gone
    restored = session.restore(session.clear(chat))
    assert session.ask(restored, "four", (), "m").turns[-1].id not in {turn.id for turn in restored.turns}


def test_an_answer_that_was_cut_off_goes_on_where_it_ended() -> None:
    chat = session.resume(answered(session.ask(Chat(), "one", (), "m"), "half", finish_reason="length"))
    assert chat.running is not None
    assert chat.running.finish_reason is None
    assert texts(chat) == [("user", "one"), ("assistant", "half")]
    assert session.resume(chat) is chat
    assert session.resume(Chat()) == Chat()
