"""One conversation as frozen records, and the pure functions that move it from state to state.

A chat is a row of turns: a question with its pictures and one or more answers to it, of which one is shown. An
error stands beside an answer as a `Notice`; it is never part of the text, so it is never sent to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from llava_core.errors import LlavaError
from llava_core.types import FinishReason, ImagePart, Message, Part, TextPart, Usage

AnswerState = Literal["waiting", "streaming", "done", "stopped", "failed"]
Rating = Literal["", "like", "dislike"]


@dataclass(frozen=True)
class Picture:
    """A picture as it was uploaded: a file the page keeps and never opens as an image."""

    name: str
    path: str
    url: str
    """Where the browser fetches it, relative to the page."""
    mime: str
    size: int
    example: str = ""
    """The file's name where it is one of the page's examples."""


@dataclass(frozen=True)
class Notice:
    """Why an answer failed, for a person; `code` is the name of the error's class."""

    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None


@dataclass(frozen=True)
class Figures:
    """What an answer took. `first_token_s` counts from the question, `answer_s` from the first token to the end."""

    first_token_s: float
    answer_s: float
    usage: Usage

    @property
    def tokens_per_s(self) -> float | None:
        """The pace after the first token; None where one token says nothing about pace."""
        later = self.usage.completion_tokens - 1
        return later / self.answer_s if later > 0 and self.answer_s > 0 else None


@dataclass(frozen=True)
class Answer:
    """What one model said to one question, so far."""

    id: str
    model: str
    state: AnswerState = "waiting"
    text: str = ""
    notice: Notice | None = None
    figures: Figures | None = None
    finish_reason: FinishReason | None = None
    rating: Rating = ""
    flagged: bool = False

    @property
    def is_running(self) -> bool:
        return self.state in ("waiting", "streaming")


@dataclass(frozen=True)
class Turn:
    """A question and the answers to it; `shown` is the index of the one that counts."""

    id: str
    text: str
    pictures: tuple[Picture, ...]
    answers: tuple[Answer, ...]
    shown: int = 0

    @property
    def answer(self) -> Answer:
        return self.answers[self.shown]


@dataclass(frozen=True)
class Chat:
    """A conversation. `before` is what `restore` brings back after something was taken away."""

    turns: tuple[Turn, ...] = ()
    serial: int = 0
    before: Chat | None = None

    @property
    def running(self) -> Answer | None:
        answer = self.turns[-1].answer if self.turns else None
        return answer if answer and answer.is_running else None


def ask(chat: Chat, text: str, pictures: tuple[Picture, ...], model: str) -> Chat:
    """A new turn whose answer waits for its first token."""
    turn = Turn(_name("t", chat), text, pictures, (Answer(_name("a", chat), model),))
    return Chat((*chat.turns, turn), chat.serial + 1)


def retry(chat: Chat, model: str) -> Chat:
    """One more answer to the last question; an answer that failed with nothing said is replaced."""
    if not chat.turns:
        return chat
    last = chat.turns[-1]
    kept = tuple(answer for answer in last.answers if answer.text)
    answers = (*kept, Answer(_name("a", chat), model))
    turn = replace(last, answers=answers, shown=len(answers) - 1)
    return Chat((*chat.turns[:-1], turn), chat.serial + 1)


def resume(chat: Chat) -> Chat:
    """Let the last answer go on from where it was cut off, stopped or lost."""
    answer = chat.turns[-1].answer if chat.turns else None
    if answer is None or answer.is_running or not answer.text:
        return chat
    changed = update(chat, answer.id, state="waiting", notice=None, figures=None, finish_reason=None)
    return replace(changed, before=None)


def edit(chat: Chat, turn_id: str, text: str, pictures: tuple[Picture, ...], model: str) -> Chat:
    """Ask that question anew; it and what followed can be brought back with `restore`."""
    index = _index(chat, turn_id)
    if index is None:
        return chat
    return replace(ask(replace(chat, turns=chat.turns[:index]), text, pictures, model), before=_settled(chat))


def undo(chat: Chat) -> Chat:
    """Take back the last turn."""
    if not chat.turns:
        return chat
    return Chat(chat.turns[:-1], chat.serial, before=_settled(chat))


def clear(chat: Chat) -> Chat:
    """Start over; a chat that was empty already keeps its way back."""
    return Chat((), chat.serial, before=_settled(chat)) if chat.turns else chat


def restore(chat: Chat) -> Chat:
    """Bring back what `edit`, `undo` or `clear` took away."""
    return replace(chat.before, serial=chat.serial) if chat.before else chat


def show(chat: Chat, turn_id: str, shown: int) -> Chat:
    """Let another of a turn's answers count. The last turn only, while nothing runs: what follows was built on it."""
    index = _index(chat, turn_id)
    if index is None or chat.running or index != len(chat.turns) - 1:
        return chat
    if not 0 <= shown < len(chat.turns[index].answers):
        return chat
    return _with_turn(chat, index, replace(chat.turns[index], shown=shown))


def update(chat: Chat, answer_id: str, **changes: Any) -> Chat:
    """The chat with fields of one answer changed; as it was where there is no such answer."""
    for index, turn in enumerate(chat.turns):
        for place, answer in enumerate(turn.answers):
            if answer.id == answer_id:
                answers = (*turn.answers[:place], replace(answer, **changes), *turn.answers[place + 1 :])
                return _with_turn(chat, index, replace(turn, answers=answers))
    return chat


def find(chat: Chat, answer_id: str) -> tuple[Turn, Answer] | None:
    return next(((turn, answer) for turn in chat.turns for answer in turn.answers if answer.id == answer_id), None)


def in_context(chat: Chat) -> tuple[Turn, ...]:
    """The earlier turns a model is told of: those it said something in. A question nobody answered is left out."""
    return tuple(turn for turn in chat.turns[:-1] if turn.answer.text)


def messages(chat: Chat, data_urls: Mapping[str, str], system: str = "") -> tuple[Message, ...]:
    """What goes to the model to answer the last question, or to go on with the answer it has begun.

    `data_urls` maps each picture's path to its data URL.
    """
    rows: list[Message] = [Message("system", (TextPart(system),))] if system.strip() else []
    for turn in in_context(chat):
        rows += [_question(turn, data_urls), Message("assistant", (TextPart(turn.answer.text),))]
    if chat.turns:
        rows.append(_question(chat.turns[-1], data_urls))
    if chat.running and chat.running.text:
        rows.append(Message("assistant", (TextPart(chat.running.text),)))
    return tuple(rows)


def pictures_sent(chat: Chat) -> tuple[Picture, ...]:
    """The pictures that `messages` needs data URLs for."""
    return tuple(picture for turn in (*in_context(chat), *chat.turns[-1:]) for picture in turn.pictures)


def notice_of(error: LlavaError) -> Notice:
    return Notice(error.code, error.message, error.retryable, error.retry_after)


def _question(turn: Turn, data_urls: Mapping[str, str]) -> Message:
    parts: list[Part] = [ImagePart(data_urls[picture.path]) for picture in turn.pictures]
    if turn.text:
        parts.append(TextPart(turn.text))
    return Message("user", tuple(parts))


def _settled(chat: Chat) -> Chat:
    """The chat as it may be brought back: an answer still on its way counts as stopped, its own way back is gone."""
    running = chat.running
    settled = update(chat, running.id, state="stopped") if running else chat
    return replace(settled, before=None)


def _with_turn(chat: Chat, index: int, turn: Turn) -> Chat:
    return replace(chat, turns=(*chat.turns[:index], turn, *chat.turns[index + 1 :]))


def _index(chat: Chat, turn_id: str) -> int | None:
    return next((index for index, turn in enumerate(chat.turns) if turn.id == turn_id), None)


def _name(kind: str, chat: Chat) -> str:
    return f"{kind}{chat.serial + 1}"
