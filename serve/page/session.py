"""One conversation as frozen records, and the pure functions that move it from state to state.

A chat is a row of turns: a question with its pictures and one or more answers to it, of which one is shown. What is not
shown hangs beside it: other wordings of a question with all that followed them, and what followed another answer. So
nothing that was said gets lost, and the row that goes to a model is always at hand.

An error stands beside an answer as a `Notice`; it is never part of the text, so it is never sent to a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it was asked with."""
    follows: tuple[Turn, ...] = ()
    """What came after it, while another answer is shown; the shown one's stands in the chat."""

    @property
    def is_running(self) -> bool:
        return self.state in ("waiting", "streaming")


@dataclass(frozen=True)
class Turn:
    """A question and the answers to it; `shown` is the index of the one that counts.

    `earlier` and `later` are other wordings of the question, each with what followed it.
    """

    id: str
    text: str
    pictures: tuple[Picture, ...]
    answers: tuple[Answer, ...]
    shown: int = 0
    earlier: tuple[tuple[Turn, ...], ...] = ()
    later: tuple[tuple[Turn, ...], ...] = ()

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


def retry(chat: Chat, model: str, turn_id: str = "") -> Chat:
    """One more answer to that question, the last if none is named; one that failed with nothing said is replaced."""
    index = _index(chat, turn_id) if turn_id else len(chat.turns) - 1
    if index is None or index < 0:
        return chat
    asked = _put_aside(chat, index)
    kept = tuple(answer for answer in asked.answers if answer.text or answer.follows)
    answers = (*kept, Answer(_name("a", chat), model))
    turn = replace(asked, answers=answers, shown=len(answers) - 1)
    return Chat((*chat.turns[:index], turn), chat.serial + 1)


def join(chat: Chat, model: str) -> Chat:
    """The chat as another model enters it: the path that is shown, and the last question asked anew."""
    if not chat.turns:
        return chat
    path = tuple(
        replace(turn, answers=(replace(turn.answer, follows=()),), shown=0, earlier=(), later=())
        for turn in settled(chat).turns
    )
    asked = replace(path[-1], answers=(Answer(_name("a", chat), model),))
    return Chat((*path[:-1], asked), chat.serial + 1)


def resume(chat: Chat) -> Chat:
    """Let the last answer go on from where it was cut off, stopped or lost."""
    answer = chat.turns[-1].answer if chat.turns else None
    if answer is None or answer.is_running or not answer.text:
        return chat
    changed = update(chat, answer.id, state="waiting", notice=None, figures=None, finish_reason=None)
    return replace(changed, before=None)


def edit(chat: Chat, turn_id: str, text: str, pictures: tuple[Picture, ...], model: str) -> Chat:
    """Ask that question in other words; the earlier wording and what followed it stay as another branch."""
    index = _index(chat, turn_id)
    if index is None:
        return chat
    whole = settled(chat)
    wordings = _wordings(whole, index)
    asked = ask(replace(whole, turns=whole.turns[:index]), text, pictures, model)
    return _with_turn(asked, index, replace(asked.turns[index], earlier=wordings))


def undo(chat: Chat) -> Chat:
    """Take back the last turn; where it has another wording, that one is shown again."""
    if not chat.turns:
        return chat
    last = chat.turns[-1]
    others = (*last.earlier, *last.later)
    place = max(0, len(last.earlier) - 1)
    tail = _among(others, place) if others else ()
    return Chat((*chat.turns[:-1], *tail), chat.serial, before=settled(chat))


def restore(chat: Chat) -> Chat:
    """Bring back what `undo` took away."""
    return replace(chat.before, serial=chat.serial) if chat.before else chat


def show(chat: Chat, turn_id: str, shown: int) -> Chat:
    """Let another of a turn's answers count, with what followed it. Not while an answer is on its way."""
    index = _index(chat, turn_id)
    if index is None or chat.running or not 0 <= shown < len(chat.turns[index].answers):
        return chat
    if shown == chat.turns[index].shown:
        return chat
    turn = _put_aside(chat, index)
    tail = turn.answers[shown].follows
    answers = tuple(
        replace(answer, follows=()) if place == shown else answer for place, answer in enumerate(turn.answers)
    )
    return replace(chat, turns=(*chat.turns[:index], replace(turn, answers=answers, shown=shown), *tail), before=None)


def show_wording(chat: Chat, turn_id: str, wording: int) -> Chat:
    """Show another wording of a question and what followed it. Not while an answer is on its way."""
    index = _index(chat, turn_id)
    if index is None or chat.running:
        return chat
    wordings = _wordings(chat, index)
    if not 0 <= wording < len(wordings):
        return chat
    return replace(chat, turns=(*chat.turns[:index], *_among(wordings, wording)), before=None)


def update(chat: Chat, answer_id: str, **changes: Any) -> Chat:
    """The chat with fields of one answer changed; as it was where there is no such answer."""
    for index, turn in enumerate(chat.turns):
        for place, answer in enumerate(turn.answers):
            if answer.id == answer_id:
                answers = (*turn.answers[:place], replace(answer, **changes), *turn.answers[place + 1 :])
                return _with_turn(chat, index, replace(turn, answers=answers))
    return chat


def settled(chat: Chat) -> Chat:
    """The chat as it may be brought back or copied: an answer still on its way counts as stopped, and it has no way
    back of its own."""
    running = chat.running
    stopped = update(chat, running.id, state="stopped") if running else chat
    return replace(stopped, before=None)


def find(chat: Chat, answer_id: str) -> tuple[Turn, Answer] | None:
    return next(((turn, answer) for turn in chat.turns for answer in turn.answers if answer.id == answer_id), None)


def in_context(chat: Chat) -> tuple[Turn, ...]:
    """The earlier turns a model is told of: those it said something in. A question nobody answered is left out."""
    return tuple(turn for turn in chat.turns[:-1] if turn.answer.text)


def messages(chat: Chat, images: Mapping[str, ImagePart], system: str = "") -> tuple[Message, ...]:
    """What goes to the model to answer the last question, or to go on with the answer it has begun.

    `images` are the pictures by their paths.
    """
    rows: list[Message] = [Message("system", (TextPart(system),))] if system.strip() else []
    for turn in in_context(chat):
        rows += [_question(turn, images), Message("assistant", (TextPart(turn.answer.text),))]
    if chat.turns:
        rows.append(_question(chat.turns[-1], images))
    if chat.running and chat.running.text:
        rows.append(Message("assistant", (TextPart(chat.running.text),)))
    return tuple(rows)


def pictures_sent(chat: Chat) -> tuple[Picture, ...]:
    """The pictures that `messages` needs."""
    return tuple(picture for turn in (*in_context(chat), *chat.turns[-1:]) for picture in turn.pictures)


def all_turns(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Those of the branches that are not shown, too."""
    for turn in turns:
        yield turn
        for branch in (*turn.earlier, *turn.later, *(answer.follows for answer in turn.answers)):
            yield from all_turns(branch)


def all_pictures(turns: Iterable[Turn]) -> Iterator[Picture]:
    return (picture for turn in all_turns(turns) for picture in turn.pictures)


def notice_of(error: LlavaError) -> Notice:
    return Notice(error.code, error.message, error.retryable, error.retry_after)


def notice_of_flags(categories: Sequence[str]) -> Notice:
    """Beside an answer that the operator's moderation marked."""
    return Notice("ContentFlagged", f"the operator's moderation flagged this answer: {', '.join(categories)}")


def _question(turn: Turn, images: Mapping[str, ImagePart]) -> Message:
    parts: list[Part] = [images[picture.path] for picture in turn.pictures]
    if turn.text:
        parts.append(TextPart(turn.text))
    return Message("user", tuple(parts))


def _wordings(chat: Chat, index: int) -> tuple[tuple[Turn, ...], ...]:
    """All wordings of a question in their order, each with what follows it."""
    turn = chat.turns[index]
    bare = replace(turn, earlier=(), later=())
    return (*turn.earlier, (bare, *chat.turns[index + 1 :]), *turn.later)


def _among(wordings: tuple[tuple[Turn, ...], ...], place: int) -> tuple[Turn, ...]:
    """The wording at `place` with what follows it, the others beside it."""
    first, *rest = wordings[place]
    return (replace(first, earlier=wordings[:place], later=wordings[place + 1 :]), *rest)


def _put_aside(chat: Chat, index: int) -> Turn:
    """The turn with what followed it hung below its answer."""
    turn = chat.turns[index]
    answers = tuple(
        replace(answer, follows=chat.turns[index + 1 :]) if place == turn.shown else answer
        for place, answer in enumerate(turn.answers)
    )
    return replace(turn, answers=answers)


def _with_turn(chat: Chat, index: int, turn: Turn) -> Chat:
    return replace(chat, turns=(*chat.turns[:index], turn, *chat.turns[index + 1 :]))


def _index(chat: Chat, turn_id: str) -> int | None:
    return next((index for index, turn in enumerate(chat.turns) if turn.id == turn_id), None)


def _name(kind: str, chat: Chat) -> str:
    return f"{kind}{chat.serial + 1}"
