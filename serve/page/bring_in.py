"""A chat out of a file: what `export.py` wrote, or any list of messages in the words of the chat-completions API.

A file comes from anywhere, so nothing in it is believed: what does not fit is refused with a sentence.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, cast

from llava_core.config import CompareLimits
from llava_core.errors import BadImage, BadRequest
from llava_core.types import FinishReason, Usage
from serve.page.export import COMPARISON, CUT, FORMAT, NO_ANSWER, STOPPED, SYSTEM
from serve.page.session import Answer, AnswerState, Chat, Figures, Notice, Picture, Rating, Turn

_DEEPEST = 40
_MOST_MESSAGES = 5000
_HOW = "bring in a chat that was exported here, or JSON with messages as the chat-completions API has them"

TakeIn = Callable[[str, bytes], Picture]
"""Makes a picture of a name and the bytes of its file; raises BadImage."""


@dataclass(frozen=True)
class BroughtIn:
    """`beside` are the further columns of a comparison."""

    chat: Chat
    system: str = ""
    beside: tuple[BroughtIn, ...] = ()


def read_chat(name: str, text: str, take_in: TakeIn) -> BroughtIn:
    """Raises BadRequest or BadImage for a file that is no chat."""
    reader = _Reader(take_in)
    try:
        found = reader.markdown(text) if name.lower().endswith((".md", ".markdown")) else reader.json(text)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        raise BadRequest(f"the file {name} is no chat that is understood; {_HOW}") from None
    if not found.chat.turns:
        raise BadRequest(f"there is no chat in {name}; {_HOW}")
    return found


class _Reader:
    def __init__(self, take_in: TakeIn) -> None:
        self._take_in = take_in
        self._numbers = count(1)
        self._taken: dict[str, Picture] = {}

    # JSON ----------------------------------------------------------------------------------------------------

    def json(self, text: str) -> BroughtIn:
        document = json.loads(text)
        if isinstance(document, list):
            document = {"messages": document}
        if document.get("format") != COMPARISON:
            return self._chat(document)
        columns = [self._chat(column) for column in document["columns"][: CompareLimits().columns]]
        return replace(columns[0], beside=tuple(columns[1:]))

    def _chat(self, document: Mapping[str, Any]) -> BroughtIn:
        messages = list(document.get("messages") or ())
        if document.get("format") != FORMAT or "turns" not in document:
            return self._of_messages(messages, str(document.get("model") or "unknown"))
        images = [part["image_url"]["url"] for message in messages for part in _parts(message) if "image_url" in part]
        images += [str(url) for url in document.get("images") or ()]
        turns = self._turns(document["turns"], images, 0)
        return BroughtIn(Chat(turns, next(self._numbers)), str(document.get("system") or ""))

    def _of_messages(self, messages: Sequence[Mapping[str, Any]], model: str) -> BroughtIn:
        turns: list[Turn] = []
        system: list[str] = []
        for message in messages:
            role, parts = message["role"], _parts(message)
            said = "\n\n".join(str(part["text"]) for part in parts if part.get("type", "text") == "text")
            if role == "system":
                system.append(said)
            elif role == "assistant" and turns and not turns[-1].answer.text:
                answer = Answer(self._name("a"), str(message.get("model") or model), "done", said)
                turns[-1] = Turn(turns[-1].id, turns[-1].text, turns[-1].pictures, (answer,))
            elif role == "user":
                urls = [part["image_url"]["url"] for part in parts if "image_url" in part]
                pictures = tuple(self._picture(f"picture {place}", url) for place, url in enumerate(urls, 1))
                turns.append(Turn(self._name("t"), said, pictures, (self._none(model),)))
            else:
                raise BadRequest(f"a message of {str(role)[:40]!r} is not where it should be; {_HOW}")
        return BroughtIn(Chat(tuple(turns), next(self._numbers)), "\n\n".join(system))

    def _turns(self, rows: Sequence[Mapping[str, Any]], images: Sequence[str], depth: int) -> tuple[Turn, ...]:
        if depth > _DEEPEST:
            raise BadRequest("the chat has more branches within branches than can be brought in")
        return tuple(self._turn(row, images, depth) for row in rows)

    def _turn(self, row: Mapping[str, Any], images: Sequence[str], depth: int) -> Turn:
        name = self._name("t")
        pictures = tuple(
            self._picture(str(picture["name"]), images[abs(int(picture["image"]))])
            for picture in row.get("pictures", ())
            if picture.get("image") is not None
        )
        answers = [self._answer(answer, images, depth) for answer in row["answers"]] or [self._none("unknown")]
        shown = min(max(0, int(row.get("shown", 0))), len(answers) - 1)
        # What followed the answer that is shown stands in the chat itself.
        answers[shown] = Answer(**{**vars(answers[shown]), "follows": ()})
        earlier, later = (
            tuple(wording for branch in row.get(side, ()) if (wording := self._turns(branch, images, depth + 1)))
            for side in ("earlier", "later")
        )
        return Turn(name, str(row["question"]), pictures, tuple(answers), shown, earlier, later)

    def _answer(self, row: Mapping[str, Any], images: Sequence[str], depth: int) -> Answer:
        state = row.get("state") if row.get("state") in ("done", "stopped", "failed") else "stopped"
        notice, rating, finish = row.get("notice"), row.get("rating"), row.get("finish_reason")
        return Answer(
            self._name("a"),
            str(row["model"])[:200],
            cast("AnswerState", state),
            str(row["text"]),
            Notice(str(notice["code"])[:60], str(notice["message"]), bool(notice.get("retryable"))) if notice else None,
            _figures(row.get("figures")),
            cast("FinishReason", finish) if finish in ("stop", "length") else None,
            cast("Rating", rating) if rating in ("like", "dislike") else "",
            row.get("flagged") is True,
            _parameters(row.get("parameters")),
            self._turns(row.get("follows", ()), images, depth + 1),
        )

    # Markdown ----------------------------------------------------------------------------------------------------

    def markdown(self, text: str) -> BroughtIn:
        lines = text.replace("\r\n", "\n").rstrip().split("\n")
        images: dict[str, str] = {}
        while lines and (target := re.fullmatch(r"\[(picture-\d+)\]: (data:\S+)", lines[-1])):
            images[target[1]] = target[2]
            lines.pop()
        if lines[0].startswith("# Comparison of "):
            raise BadRequest("a comparison written as Markdown is to be read only; bring in its JSON")
        head, *asked = re.split(r"(?m)^## Question[ \t]*$", "\n".join(lines))
        turns = tuple(self._written_turn(part, images) for part in asked)
        return BroughtIn(Chat(turns, next(self._numbers)), _written_system(head))

    def _written_turn(self, part: str, images: Mapping[str, str]) -> Turn:
        question, _, rest = part.partition("\n## ")
        model, _, said = rest.partition("\n")
        pictures: list[Picture] = []
        question = question.strip("\n")
        while found := re.match(r"!\[([^\]\n]*)\]\[(picture-\d+)\]\s*", question):
            pictures.append(self._picture(found[1], images[found[2]]))
            question = question[found.end() :]
        state: AnswerState = "done"
        notice: Notice | None = None
        finish: FinishReason | None = "stop"
        said = said.strip("\n")
        before, _, last = said.rpartition("\n")
        if last == f"*{STOPPED}*":
            said, state, finish = before, "stopped", None
        elif last == f"*{CUT}*":
            said, finish = before, "length"
        elif told := re.fullmatch(r"\*([A-Z]\w+): (.+)\*", last):
            said, state, finish, notice = before, "failed", None, Notice(told[1], told[2], retryable=True)
        said = said.strip("\n")
        answer = Answer(
            self._name("a"),
            model.strip()[:200] or "unknown",
            state,
            "" if said == NO_ANSWER else _bare(said, "## Question"),
            notice,
            finish_reason=finish,
        )
        return Turn(self._name("t"), _bare(question, "## "), tuple(pictures), (answer,))

    # both ----------------------------------------------------------------------------------------------------

    def _picture(self, name: str, url: str) -> Picture:
        if url not in self._taken:
            self._taken[url] = self._take_in(name[:200], _decoded(name, url))
        return Picture(**{**vars(self._taken[url]), "name": name[:200]})

    def _none(self, model: str) -> Answer:
        return Answer(self._name("a"), model[:200], "stopped")

    def _name(self, kind: str) -> str:
        number = next(self._numbers)
        if number > _MOST_MESSAGES:
            raise BadRequest(f"the chat has more than the {_MOST_MESSAGES} messages that can be brought in")
        return f"{kind}{number}"


def _bare(text: str, heading: str) -> str:
    return re.sub(rf"(?m)^\\(?=\\*{re.escape(heading)})", "", text)


def _written_system(head: str) -> str:
    found = re.search(rf"(?m)^{re.escape(SYSTEM)}(.*(?:\n> .*|\n>$)*)", head)
    return re.sub(r"(?m)^> ?", "", found[1]) if found else ""


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _decoded(name: str, url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise BadImage(
            f"the picture {name[:80]!r} is only named in the file, not part of it; export it with its pictures"
        )
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise BadImage(f"the picture {name[:80]!r} is damaged in the file; export the chat again") from None


def _figures(given: Any) -> Figures | None:
    if not isinstance(given, Mapping):
        return None
    row = cast("Mapping[str, Any]", given)
    usage = row["usage"]
    counts = [max(0, int(usage.get(f"{kind}_tokens", 0))) for kind in ("prompt", "completion", "image", "cached")]
    return Figures(abs(float(row["first_token_s"])), abs(float(row["answer_s"])), Usage(*counts))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _parameters(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return {}
    row = cast("Mapping[str, Any]", given)
    kept = {name: row[name] for name in ("temperature", "top_p") if _is_number(row.get(name))}
    if isinstance(row.get("max_tokens"), int):
        kept["max_tokens"] = row["max_tokens"]
    seed, system = row.get("seed"), row.get("system")
    if isinstance(seed, int) and -(1 << 63) <= seed < 1 << 63:
        kept["seed"] = seed
    if isinstance(system, str) and system:
        kept["system"] = system
    return kept
