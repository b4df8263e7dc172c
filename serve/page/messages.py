"""Reads the messages of browsers: who they are from, which pictures they claim, and how answers are to be drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from llava_core.errors import BadImage, BadRequest
from llava_core.types import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, Sampling
from serve.page.history import owner_of
from serve.page.room import Settings

SECRET = re.compile(r"[A-Za-z0-9_-]{20,80}")
LONGEST_QUESTION = 200_000

Message = Mapping[str, Any]


def read_owner(message: Message) -> str:
    """The hash under which this browser's chats are kept; empty where it shows no proper secret."""
    secret = str(message.get("owner") or "")
    return owner_of(secret) if SECRET.fullmatch(secret) else ""


def read_claims(message: Message) -> list[Message]:
    listed = message.get("pictures") or []
    if not isinstance(listed, list) or not all(isinstance(claim, Mapping) for claim in listed):
        raise BadImage("the pictures did not arrive as they should; attach them again")
    return cast("list[Message]", listed)


def read_settings(message: Message) -> Settings:
    """The person's settings. Raises BadRequest for a number out of range."""
    given = message.get("settings")
    chosen: Message = cast("Message", given) if isinstance(given, Mapping) else {}
    seed = chosen.get("seed")
    try:
        sampling = Sampling(
            max_tokens=int(chosen.get("max_tokens", DEFAULT_MAX_TOKENS)),
            temperature=float(chosen.get("temperature", DEFAULT_TEMPERATURE)),
            top_p=float(chosen.get("top_p", DEFAULT_TOP_P)),
            seed=None if seed in (None, "") else int(cast(str, seed)),
        )
    except (TypeError, ValueError, OverflowError):
        raise BadRequest("one of the settings is not a number; open them and set it again") from None
    return replace(Settings(), system=str(chosen.get("system") or "")[:LONGEST_QUESTION], sampling=sampling)


def read_number(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
