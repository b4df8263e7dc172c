"""The moves of a conversation: what is asked, taken back, brought back, and what a model gets to see of it."""

from __future__ import annotations

from typing import Any

from llava_core.errors import Overloaded
from llava_core.types import ImagePart, Message, TextPart
from serve.page import session
from serve.page.session import Chat, Picture

CAT = Picture("cat.png", "/up/cat.png", "file=/up/cat.png", "image/png", 10)
DOG = Picture("dog.png", "/up/dog.png", "file=/up/dog.png", "image/png", 10)
SHOWN = {CAT.path: ImagePart("data:image/png;base64,Q0FU"), DOG.path: ImagePart("data:image/png;base64,RE9H")}


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
    return [(message.role, message.text) for message in session.messages(chat, SHOWN)]


def test_every_earlier_turn_and_picture_goes_to_the_model_in_order() -> None:
    chat = answered(session.ask(Chat(), "What is it?", (CAT,), "m"), "A cat.")
    chat = answered(session.ask(chat, "Its colour?", (), "m"), "Grey.")
    chat = session.ask(chat, "And this?", (DOG,), "m")

    assert session.messages(chat, SHOWN, "Be brief.") == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (SHOWN[CAT.path], TextPart("What is it?"))),
        Message("assistant", (TextPart("A cat."),)),
        Message("user", (TextPart("Its colour?"),)),
        Message("assistant", (TextPart("Grey."),)),
        Message("user", (SHOWN[DOG.path], TextPart("And this?"))),
    )


def test_a_picture_alone_is_a_question() -> None:
    chat = session.ask(Chat(), "", (CAT,), "m")
    assert session.messages(chat, SHOWN) == (Message("user", (SHOWN[CAT.path],)),)


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


def test_what_followed_an_answer_comes_and_goes_with_it() -> None:
    chat = answered(session.retry(talk(("one", "1")), "m"), "2")
    chat = answered(session.ask(chat, "next", (), "m"), "3")
    first = session.show(chat, chat.turns[0].id, 0)
    assert texts(session.ask(first, "other", (), "m")) == [("user", "one"), ("assistant", "1"), ("user", "other")]
    assert session.show(first, chat.turns[0].id, 1).turns == chat.turns
    assert session.show(chat, chat.turns[1].id, 7) is chat


def test_an_earlier_question_can_be_answered_again_without_losing_what_followed() -> None:
    chat = talk(("one", "1"), ("two", "2"))
    again = answered(session.retry(chat, "m", chat.turns[0].id), "uno")
    assert texts(again) == [("user", "one")]
    assert again.turns[0].answer.text == "uno"
    assert session.show(again, chat.turns[0].id, 0).turns[1] == chat.turns[1]


def test_editing_keeps_the_earlier_wording_with_what_followed_as_another_branch() -> None:
    chat = talk(("one", "1"), ("two", "2"), ("three", "3"))
    edited = session.edit(chat, chat.turns[1].id, "TWO", (CAT,), "m")
    assert [turn.text for turn in edited.turns] == ["one", "TWO"]
    assert edited.running
    assert session.show_wording(edited, edited.turns[1].id, 0) is edited  # not while it is answered
    edited = answered(edited, "due")
    back = session.show_wording(edited, edited.turns[1].id, 0)
    assert [turn.text for turn in back.turns] == ["one", "two", "three"]
    again = session.show_wording(back, back.turns[1].id, 1)
    assert again.turns == edited.turns
    assert session.show_wording(again, again.turns[1].id, 2) is again


def test_a_question_has_as_many_wordings_as_it_was_given() -> None:
    chat = talk(("one", "1"))
    for wording in ("uno", "eins"):
        chat = answered(session.edit(chat, chat.turns[0].id, wording, (), "m"), wording)
    first = session.show_wording(chat, chat.turns[0].id, 0)
    chat = answered(session.edit(first, first.turns[0].id, "une", (), "m"), "une")
    seen = [session.show_wording(chat, chat.turns[0].id, place).turns[0].text for place in range(4)]
    assert seen == ["one", "uno", "eins", "une"]


def test_taking_back_an_edited_question_shows_the_wording_before() -> None:
    chat = talk(("one", "1"), ("two", "2"))
    edited = answered(session.edit(chat, chat.turns[0].id, "uno", (), "m"), "ein")
    undone = session.undo(edited)
    assert [turn.text for turn in undone.turns] == ["one", "two"]
    assert undone.turns[0].earlier == undone.turns[0].later == ()
    assert session.restore(undone).turns == edited.turns


def test_editing_a_turn_that_is_not_there_changes_nothing() -> None:
    chat = talk(("one", "1"))
    assert session.edit(chat, "t99", "x", (), "m") is chat


def test_undo_takes_the_last_turn_back_and_restore_returns_it() -> None:
    chat = talk(("one", "1"), ("two", "2"))
    undone = session.undo(chat)
    assert [turn.text for turn in undone.turns] == ["one"]
    assert session.restore(undone).turns == chat.turns
    assert session.undo(Chat()) == Chat()


def test_an_answer_on_its_way_counts_as_stopped_when_it_is_brought_back() -> None:
    running = session.ask(talk(("one", "1")), "two", (), "m")
    restored = session.restore(session.undo(running))
    assert restored.running is None
    assert restored.turns[-1].answer.state == "stopped"


def test_names_of_turns_and_answers_are_never_given_twice() -> None:
    chat = talk(("one", "1"), ("two", "2"))
    gone = {turn.id for turn in chat.turns}
    chat = session.ask(session.undo(session.undo(chat)), "three", (), "m")
    assert chat.turns[0].id not in gone
    restored = session.restore(session.undo(chat))
    assert session.ask(restored, "four", (), "m").turns[-1].id not in {turn.id for turn in restored.turns}


def test_an_answer_that_was_cut_off_goes_on_where_it_ended() -> None:
    chat = session.resume(answered(session.ask(Chat(), "one", (), "m"), "half", finish_reason="length"))
    assert chat.running is not None
    assert chat.running.finish_reason is None
    assert texts(chat) == [("user", "one"), ("assistant", "half")]
    assert session.resume(chat) is chat
    assert session.resume(Chat()) == Chat()


def test_a_model_that_joins_gets_the_shown_path_and_is_asked_the_last_question_anew() -> None:
    chat = answered(session.ask(Chat(), "What is it?", (CAT,), "m"), "A cat.")
    chat = answered(session.retry(chat, "m"), "A dog.")
    chat = answered(session.ask(chat, "Sure?", (), "m"), "Very.")
    joined = session.join(chat, "new")
    assert [[answer.text for answer in turn.answers] for turn in joined.turns] == [["A dog."], [""]]
    assert joined.running
    assert joined.running.model == "new"
    assert texts(joined) == [("user", "What is it?"), ("assistant", "A dog."), ("user", "Sure?")]
    assert session.join(Chat(), "new") == Chat()


def test_a_chat_that_is_copied_while_an_answer_comes_ends_with_what_has_come() -> None:
    chat = session.ask(talk(("One", "1")), "Two", (), "m")
    assert chat.running
    copied = session.settled(session.update(chat, chat.running.id, text="half", state="streaming"))
    assert (copied.running, copied.turns[-1].answer.state, copied.turns[-1].answer.text) == (None, "stopped", "half")
