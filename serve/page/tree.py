"""A chat as rows to keep, and back: the row of turns that is shown and the branches beside it as a tree of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from llava_core.types import FinishReason, Usage
from serve.page.session import Answer, AnswerState, Figures, Notice, Picture, Rating, Turn
from serve.store.records import Generation, KeptMessage, KeptPicture

CUT_OFF = Notice(
    "Interrupted", "the server ended while this answer was on its way; what had come until then is here", retryable=True
)


def messages_of(turns: Sequence[Turn]) -> tuple[KeptMessage, ...]:
    """Every message of the tree, parents before their children."""
    return tuple(_path(turns, None))


def turns_of(messages: Sequence[KeptMessage], picture: Callable[[KeptPicture], Picture]) -> tuple[Turn, ...]:
    """The row that is shown, with its branches. An answer that was never finished is marked as cut off."""
    children: dict[str | None, list[KeptMessage]] = {}
    for message in messages:
        children.setdefault(message.parent, []).append(message)
    return _Reader(children, picture).path(None)


def title_of(turns: Sequence[Turn]) -> str:
    """A chat is called by its first question."""
    if not turns:
        return "New chat"
    first = " ".join(turns[0].text.split())
    named = first or (turns[0].pictures[0].name if turns[0].pictures else "A chat")
    return named if len(named) <= 80 else named[:79].rstrip() + "…"


def _path(turns: Sequence[Turn], parent: str | None, place: int = 0, shown: bool = True) -> Iterator[KeptMessage]:
    """`place` and `shown` are those of the first turn among its siblings, where it has none beside it."""
    for turn in turns:
        for number, wording in enumerate(turn.earlier):
            yield from _path(wording, parent, number, shown=False)
        own = place + len(turn.earlier)
        yield KeptMessage(turn.id, parent, "user", own, shown, turn.text, tuple(map(_kept_picture, turn.pictures)))
        for number, answer in enumerate(turn.answers):
            yield _kept_answer(answer, turn.id, number, number == turn.shown)
            yield from _path(answer.follows, answer.id)
        for number, wording in enumerate(turn.later, own + 1):
            yield from _path(wording, parent, number, shown=False)
        parent, place, shown = turn.answer.id, 0, True


def _kept_picture(picture: Picture) -> KeptPicture:
    return KeptPicture(picture.name, picture.mime, picture.size, picture.example, file=picture.path)


def _kept_answer(answer: Answer, parent: str, position: int, shown: bool) -> KeptMessage:
    figures, notice = answer.figures, answer.notice
    usage = figures.usage if figures else None
    generation = Generation(
        model=answer.model,
        status=answer.state,
        parameters={name: value for name, value in answer.parameters.items() if name != "seed"},
        seed=answer.parameters.get("seed"),
        error_class=notice.code if notice else None,
        error_message=notice.message if notice else None,
        finish_reason=answer.finish_reason,
        first_token_s=figures.first_token_s if figures else None,
        answer_s=figures.answer_s if figures else None,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        image_tokens=usage.image_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
    )
    return KeptMessage(
        answer.id,
        parent,
        "assistant",
        position,
        shown,
        answer.text,
        generation=generation,
        rating=answer.rating,
        flagged=answer.flagged,
    )


class _Reader:
    def __init__(
        self, children: dict[str | None, list[KeptMessage]], picture: Callable[[KeptPicture], Picture]
    ) -> None:
        self._children = children
        self._picture = picture

    def path(self, parent: str | None) -> tuple[Turn, ...]:
        turns: list[Turn] = []
        while wordings := [kept for kept in self._below(parent) if self._below(kept.key)]:
            at = _shown(wordings)
            branches = [
                () if place == at else (bare := self._turn(kept), *self.path(bare.answer.id))
                for place, kept in enumerate(wordings)
            ]
            turn = self._turn(wordings[at], tuple(branches[:at]), tuple(branches[at + 1 :]))
            turns.append(turn)
            parent = turn.answer.id
        return tuple(turns)

    def _turn(
        self,
        kept: KeptMessage,
        earlier: tuple[tuple[Turn, ...], ...] = (),
        later: tuple[tuple[Turn, ...], ...] = (),
    ) -> Turn:
        below = self._below(kept.key)
        shown = _shown(below)
        answers = tuple(
            _answer(answer, () if place == shown else self.path(answer.key)) for place, answer in enumerate(below)
        )
        pictures = tuple(self._picture(picture) for picture in kept.pictures)
        return Turn(kept.key, kept.text, pictures, answers, shown, earlier, later)

    def _below(self, parent: str | None) -> list[KeptMessage]:
        return self._children.get(parent, [])


def _shown(siblings: Sequence[KeptMessage]) -> int:
    """The last that says so; two do where a chat went on while the earlier part of it could not be read."""
    return max((place for place, kept in enumerate(siblings) if kept.shown), default=len(siblings) - 1)


def _answer(kept: KeptMessage, follows: tuple[Turn, ...]) -> Answer:
    made = kept.generation or Generation("", "done")
    notice = Notice(made.error_class, made.error_message or "", retryable=True) if made.error_class else None
    state = cast("AnswerState", made.status)
    if state in ("waiting", "streaming"):
        state, notice = "failed", CUT_OFF
    parameters: dict[str, Any] = {**made.parameters, **({} if made.seed is None else {"seed": made.seed})}
    return Answer(
        kept.key,
        made.model,
        state,
        kept.text,
        notice,
        _figures(made),
        cast("FinishReason | None", made.finish_reason),
        cast("Rating", kept.rating),
        kept.flagged,
        parameters,
        follows,
    )


def _figures(made: Generation) -> Figures | None:
    if made.first_token_s is None or made.answer_s is None:
        return None
    usage = Usage(
        prompt_tokens=made.prompt_tokens or 0,
        completion_tokens=made.completion_tokens or 0,
        image_tokens=made.image_tokens or 0,
        cached_tokens=made.cached_tokens or 0,
    )
    return Figures(made.first_token_s, made.answer_s, usage)
