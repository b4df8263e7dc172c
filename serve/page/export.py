"""A chat as a file to keep: JSON in the words of the chat-completions API, or Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from llava_core.types import ImagePart, Message, TextPart
from serve.page import session
from serve.page.session import Answer, Chat, Turn

FORMAT = "llava-serve-chat/1"


def to_json(chat: Chat, data_urls: Mapping[str, str], system: str, when: datetime) -> str:
    """`messages` have the form of `/v1/chat/completions`, which takes them with a further question at their end;
    `turns` tells the rest of the story."""
    document = {
        "format": FORMAT,
        "exported_at": when.isoformat(timespec="seconds"),
        "messages": [_message(message) for message in _whole(chat, data_urls, system)],
        "turns": [_turn(turn) for turn in chat.turns],
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def to_markdown(chat: Chat, data_urls: Mapping[str, str], system: str, when: datetime) -> str:
    """Pictures are links whose data stands at the end of the file, out of the reader's way."""
    lines = [f"# Chat of {when:%d %B %Y, %H:%M}", ""]
    if system.strip():
        lines += ["> System prompt: " + system.strip().replace("\n", "\n> "), ""]
    targets: list[str] = []
    for turn in chat.turns:
        lines += ["## Question", ""]
        for picture in turn.pictures:
            targets.append(f"[picture-{len(targets) + 1}]: {data_urls[picture.path]}")
            lines += [f"![{picture.name}][picture-{len(targets)}]", ""]
        lines += [turn.text, "", f"## {turn.answer.model}", "", turn.answer.text or "*No answer.*", ""]
        remark = _remark(turn.answer)
        if remark:
            lines += [f"*{remark}*", ""]
    return "\n".join([*lines, *targets]).rstrip() + "\n"


def _whole(chat: Chat, data_urls: Mapping[str, str], system: str) -> list[Message]:
    """The context and the last turn with its answer, if it has one."""
    rows = list(session.messages(chat, data_urls, system))
    if chat.turns and chat.turns[-1].answer.text:
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


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "question": turn.text,
        "pictures": [{"name": picture.name, "bytes": picture.size} for picture in turn.pictures],
        "shown": turn.shown,
        "answers": [_answer(answer) for answer in turn.answers],
    }


def _answer(answer: Answer) -> dict[str, Any]:
    record = {key: value for key, value in asdict(answer).items() if key != "id" and value not in (None, "", False)}
    return {"model": answer.model, "text": answer.text, **record}


def _remark(answer: Answer) -> str:
    if answer.notice:
        return f"{answer.notice.code}: {answer.notice.message}"
    if answer.state == "stopped":
        return "Stopped by the reader."
    return "Cut off at the token limit." if answer.finish_reason == "length" else ""
