"""A record of any known form as one sample: a chat in the words that serving uses, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_core.train.sources import Broken
from llava_core.types import ImagePart, Message, Part, Role, TextPart

IMAGE_MARK = "<image>"
_ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# Questions for captions that come without one; which is taken depends on the caption alone.
_QUESTIONS = (
    "Describe the picture in a few words.",
    "What does this picture show?",
    "Give a short description of the picture.",
    "Say briefly what can be seen here.",
)

Picture = Path | bytes


@dataclass(frozen=True)
class Sample:
    """One chat. `pictures` stand in the order of the messages' image parts."""

    id: str
    place: str
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]


class BadSample(Exception):
    """A record is no sample; the reason is for the person who wrote it."""


def to_sample(record: Any, place: str, folder: Path, *, pictures_first: bool = True) -> Sample:
    """Raises BadSample with the reason."""
    if isinstance(record, Broken):
        raise BadSample(record.reason)
    if not isinstance(record, Mapping):
        raise BadSample(f"a sample is an object, this is {type(record).__name__}")
    name = str(record.get("id", record.get("question_id", "")))
    pictures = _pictures(record, folder)
    turns = _turns(record, len(pictures))
    messages = tuple(_message(role, content, first=pictures_first) for role, content in turns)
    _check_order(messages)
    marks = sum(len(message.images) for message in messages)
    if marks != len(pictures):
        raise BadSample(
            f"{_several(marks, IMAGE_MARK + ' mark')} in the text, but {_several(len(pictures), 'picture')}"
        )
    for message in messages:
        if message.role != "user" and (message.images or IMAGE_MARK in message.text):
            raise BadSample(f"a picture stands in the {message.role}'s words; only the user shows pictures")
    return Sample(name, place, messages, pictures)


def _pictures(record: Mapping[str, Any], folder: Path) -> tuple[Picture, ...]:
    given = next((record[key] for key in ("image", "images", "file_name") if record.get(key)), [])
    several: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    found: list[Picture] = []
    for one in several:
        if isinstance(one, Mapping):  # as a dataset of Hugging Face keeps it
            one = one.get("bytes") or one.get("path")
        if isinstance(one, bytes):
            found.append(one)
        elif isinstance(one, str) and one:
            found.append(folder / one)
        else:
            raise BadSample(f"a picture is named by text, this is {type(one).__name__}")
    return tuple(found)


def _turns(record: Mapping[str, Any], pictures: int) -> list[tuple[Role, Any]]:
    given = record.get("conversations", record.get("messages"))
    if given is None:
        return _caption(record, pictures)
    if not isinstance(given, list) or not given:
        raise BadSample("`conversations` must be a list with at least a question and an answer")
    turns: list[tuple[Role, Any]] = []
    for number, turn in enumerate(given, 1):
        if not isinstance(turn, Mapping):
            raise BadSample(f"turn {number} is {type(turn).__name__}, not an object with `from` and `value`")
        who = turn.get("from", turn.get("role"))
        content = turn.get("value", turn.get("content"))
        role = _ROLES.get(str(who))
        if role is None:
            raise BadSample(f"turn {number} is from {who!r}; known are {', '.join(_ROLES)}")
        if not isinstance(content, str | list):
            raise BadSample(f"turn {number} has no text")
        turns.append((role, content))
    return turns


def _caption(record: Mapping[str, Any], pictures: int) -> list[tuple[Role, Any]]:
    caption = next((record[key] for key in ("caption", "text") if record.get(key)), None)
    if not isinstance(caption, str):
        raise BadSample("it has neither `conversations` nor a `caption`")
    if not pictures:
        raise BadSample("a caption without its picture")
    question = _QUESTIONS[sum(caption.encode()) % len(_QUESTIONS)]
    return [("user", IMAGE_MARK * pictures + question), ("assistant", caption)]


def _message(role: Role, content: Any, *, first: bool) -> Message:
    if isinstance(content, list):
        return Message(role, tuple(_part(part) for part in content))
    if role == "user":
        return Message(role, _cut(content, first=first))
    return Message(role, (TextPart(content.strip()),))


def _part(part: Any) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return TextPart(part["text"])
    if kind in ("image", "image_url"):
        return ImagePart("")
    raise BadSample(f"a part of a turn is neither text nor a picture: {part!r:.80}")


def _cut(text: str, *, first: bool) -> tuple[Part, ...]:
    """A question's text and pictures, without the line breaks that the templates put between them."""
    pieces = text.split(IMAGE_MARK)
    words = [piece.strip("\n") if len(pieces) > 1 else piece for piece in pieces]
    words[0], words[-1] = words[0].lstrip(), words[-1].rstrip()
    if first and len(pieces) == 2 and words[0] and not words[1].strip():
        words = [words[1].strip(), words[0]]
    parts: list[Part] = []
    for index, piece in enumerate(words):
        if index:
            parts.append(ImagePart(""))
        if piece:
            parts.append(TextPart(piece))
    return tuple(parts)


def _check_order(messages: Sequence[Message]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            raise BadSample(f"turn {number + 1} is the {message.role}'s, where the {expected}'s belongs")
        if not message.text.strip() and not message.images:
            raise BadSample(f"turn {number + 1} is empty")
        if message.role == "assistant" and not message.text.strip():
            raise BadSample(f"turn {number + 1} is an empty answer")
    if not turns or turns[-1].role != "assistant":
        raise BadSample("it does not end with an answer")


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
