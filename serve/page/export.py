"""A chat as a file to keep: JSON in the words of the chat-completions API, or Markdown to read.

`bring_in.py` reads both again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from llava_core.types import ImagePart, Message, TextPart
from serve.page import session
from serve.page.session import Answer, Chat, Turn

FORMAT, COMPARISON = "llava-serve-chat/1", "llava-serve-comparison/1"
STOPPED, CUT = "Stopped by the reader.", "Cut off at the token limit."
NO_ANSWER = "*No answer.*"
SYSTEM = "> System prompt: "


def to_json(chat: Chat, data_urls: Mapping[str, str], system: str, when: datetime) -> str:
    """`messages` have the form of `/v1/chat/completions`, which takes them with a further question at their end;
    `turns` tells the rest of the story, with all branches. A picture's `image` counts through those of `messages` and
    then through `images`."""
    return json.dumps(document_of(chat, data_urls, system, when), ensure_ascii=False, indent=2) + "\n"


def document_of(chat: Chat, data_urls: Mapping[str, str], system: str, when: datetime) -> dict[str, Any]:
    messages = [_message(message) for message in _whole(chat, data_urls, system)]
    images = [part["image_url"]["url"] for message in messages for part in _parts(message) if "image_url" in part]
    sent = len(images)
    places = {url: place for place, url in reversed(list(enumerate(images)))}
    for picture in session.all_pictures(chat.turns):
        url = data_urls[picture.path]
        if url not in places:
            places[url] = len(images)
            images.append(url)
    numbers = {path: places[url] for path, url in data_urls.items() if url in places}
    return {
        "format": FORMAT,
        "exported_at": when.isoformat(timespec="seconds"),
        "system": system,
        "messages": messages,
        "turns": [_turn(turn, numbers) for turn in chat.turns],
        "images": images[sent:],
    }


def to_markdown(chat: Chat, data_urls: Mapping[str, str], system: str, when: datetime) -> str:
    """What is shown of the chat. Pictures are links whose data stands at the end of the file, out of the way."""
    lines = [f"# Chat of {when:%d %B %Y, %H:%M}", ""]
    if system.strip():
        lines += [SYSTEM + system.strip().replace("\n", "\n> "), ""]
    targets: list[str] = []
    for turn in chat.turns:
        lines += [*asked(turn, data_urls, targets), *answered(turn.answer, turn.answer.model)]
    return "\n".join([*lines, *targets]).rstrip() + "\n"


def asked(turn: Turn, data_urls: Mapping[str, str], targets: list[str]) -> list[str]:
    """A question as lines of Markdown; what its pictures link to is added to `targets`."""
    lines = ["## Question", ""]
    for picture in turn.pictures:
        targets.append(f"[picture-{len(targets) + 1}]: {data_urls[picture.path]}")
        name = re.sub(r"[\[\]\n]", "_", picture.name)
        lines += [f"![{name}][picture-{len(targets)}]", ""]
    return [*lines, _escaped(turn.text, "## "), ""]


def answered(answer: Answer, heading: str) -> list[str]:
    lines = [f"## {heading}", "", _escaped(answer.text, "## Question") or NO_ANSWER, ""]
    remark = _remark(answer)
    return [*lines, f"*{remark}*", ""] if remark else lines


def _escaped(text: str, heading: str) -> str:
    """Lines that would be taken for one of our headings, with a backslash more before them."""
    return re.sub(rf"(?m)^(?=\\*{re.escape(heading)})", r"\\", text)


def _whole(chat: Chat, data_urls: Mapping[str, str], system: str) -> list[Message]:
    """The context and the last turn with its answer, if it has one."""
    rows = list(session.messages(chat, {path: ImagePart(url) for path, url in data_urls.items()}, system))
    if chat.turns and chat.turns[-1].answer.text and not chat.running:
        rows.append(Message("assistant", (TextPart(chat.turns[-1].answer.text),)))
    return rows


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, TextPart) for part in message.parts):
        return {"role": message.role, "content": message.text}
    content = [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


def _turn(turn: Turn, numbers: Mapping[str, int]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "question": turn.text,
        "pictures": [
            {"name": picture.name, "bytes": picture.size, "image": numbers.get(picture.path)}
            for picture in turn.pictures
        ],
        "shown": turn.shown,
        "answers": [_answer(answer, numbers) for answer in turn.answers],
    }
    for name, wordings in (("earlier", turn.earlier), ("later", turn.later)):
        if wordings:
            record[name] = [[_turn(one, numbers) for one in wording] for wording in wordings]
    return record


def _answer(answer: Answer, numbers: Mapping[str, int]) -> dict[str, Any]:
    plain = asdict(replace(answer, follows=()))
    record = {key: value for key, value in plain.items() if key != "id" and value not in (None, "", False, (), {})}
    if answer.follows:
        record["follows"] = [_turn(turn, numbers) for turn in answer.follows]
    return {"model": answer.model, "text": answer.text, **record}


def _remark(answer: Answer) -> str:
    if answer.notice:
        return f"{answer.notice.code}: {answer.notice.message}"
    if answer.state == "stopped":
        return STOPPED
    return CUT if answer.finish_reason == "length" else ""
