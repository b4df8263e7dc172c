"""A chat written to a file, as JSON in the words of the API or as Markdown to read."""

from __future__ import annotations

import json
from pathlib import Path

from llava_core.chat_protocol import write_message
from llava_core.errors import BadRequest
from serve.terminal.chat import Chat


def save(chat: Chat, model: str, file: Path) -> None:
    """JSON or Markdown by the file's suffix. Raises BadRequest when it cannot be written."""
    if file.suffix.lower() == ".json":
        text = to_json(chat, model)
    elif file.suffix.lower() in (".md", ".markdown"):
        text = to_markdown(chat)
    else:
        raise BadRequest(f"{file.name}: end the name in .json or .md to say how to save")
    try:
        file.expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"cannot write {file}: {error.strerror or error}") from None


def to_json(chat: Chat, model: str) -> str:
    """`model` and `messages` in the form of /v1/chat/completions, pictures included; it wants a further question."""
    body = {"model": model, "messages": [write_message(message) for message in chat.messages()]}
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def to_markdown(chat: Chat) -> str:
    """Pictures are links whose data stands at the end, out of the reader's way."""
    lines = ["# Chat", ""]
    if chat.system:
        lines += ["> System prompt: " + chat.system.replace("\n", "\n> "), ""]
    targets: list[str] = []
    for turn in chat.turns:
        lines += ["## Question", ""]
        for picture in turn.pictures:
            targets.append(f"[picture-{len(targets) + 1}]: {picture.part.url}")
            lines += [f"![{picture.name}][picture-{len(targets)}]", ""]
        lines += [turn.text, "", f"## {turn.model or 'Answer'}", "", turn.answer or "*No answer.*", ""]
    return "\n".join([*lines, *targets]).rstrip() + "\n"
