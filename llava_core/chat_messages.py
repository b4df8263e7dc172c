"""The messages of an OpenAI chat, both ways: text as a bare string or a list of parts, pictures as `image_url`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llava_core.config import RequestLimits
from llava_core.errors import BadRequest
from llava_core.types import ImagePart, Message, Part, Role, TextPart

Json = dict[str, Any]


def read_messages(given: Sequence[Any], *, limits: RequestLimits | None = None) -> tuple[Message, ...]:
    """Messages as OpenAI writes them, checked. Raises BadRequest."""
    limits = limits or RequestLimits()
    if len(given) > limits.max_messages:
        raise BadRequest(
            f"the chat has {len(given)} messages, at most {limits.max_messages} are taken; drop the oldest",
            param="messages",
        )
    messages = tuple(_message(message, f"messages[{at}]") for at, message in enumerate(given))
    chars = sum(len(message.text) for message in messages)
    if chars > limits.max_text_chars:
        raise BadRequest(
            f"the chat has {chars} characters of text, at most {limits.max_text_chars} are taken; shorten it",
            param="messages",
        )
    return messages


def write_message(message: Message) -> Json:
    """One message as OpenAI writes it: a bare string where it is all text, else a list of parts."""
    if len(message.parts) == 1 and isinstance(message.parts[0], TextPart):
        return {"role": message.role, "content": message.parts[0].text}
    return {"role": message.role, "content": [_write_part(part) for part in message.parts]}


_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _message(given: Any, where: str) -> Message:
    fields = _object(given, where)
    role = fields.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequest(f"{where}.role must be one of {', '.join(_ROLES)}, not {_shown(role)}", param=f"{where}.role")
    content = fields.get("content")
    if isinstance(content, str):
        return Message(_ROLES[role], (TextPart(content),))
    if not isinstance(content, list):
        raise BadRequest(f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    parts = cast(list[Any], content)
    return Message(_ROLES[role], tuple(_part(part, f"{where}.content[{at}]") for at, part in enumerate(parts)))


def _part(given: Any, where: str) -> Part:
    if isinstance(given, str):
        return TextPart(given)
    fields = _object(given, where)
    kind = fields.get("type")
    if kind == "text":
        text = fields.get("text")
        if not isinstance(text, str):
            raise BadRequest(f"{where}.text must be a string", param=f"{where}.text")
        return TextPart(text)
    if kind == "image_url":
        image = fields.get("image_url")
        url: Any = cast(Json, image).get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url:
            raise BadRequest(f"{where}.image_url.url must be a string that is no empty one", param=f"{where}.image_url")
        return ImagePart(url)
    raise BadRequest(f"{where}.type must be text or image_url, not {_shown(kind)}", param=f"{where}.type")


def _write_part(part: Part) -> Json:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.url}}


def _object(given: Any, where: str) -> Json:
    if not isinstance(given, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    return cast(Json, given)


def _shown(value: Any) -> str:
    """A stranger's value, short and harmless enough to stand in a sentence."""
    return json.dumps(value)[:40] if isinstance(value, str | int | float | bool) or value is None else "that"
