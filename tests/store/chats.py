"""Chats to keep: trees of messages with and without pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from serve.store.records import Generation, KeptChat, KeptMessage, KeptPicture, Role

ME, YOU = "me", "you"


def message(
    key: str,
    parent: str | None,
    text: str,
    *,
    position: int = 0,
    shown: bool = True,
    pictures: tuple[KeptPicture, ...] = (),
    status: str = "done",
    model: str = "echo",
) -> KeptMessage:
    """A question where the key begins with t, an answer where it begins with a."""
    role: Role = "user" if key.startswith("t") else "assistant"
    generation = None if role == "user" else Generation(model, status, {"temperature": 0.2}, seed=7)
    return KeptMessage(key, parent, role, position, shown, text, pictures, generation)


def chat(*messages: KeptMessage, id: str = "chat-1", owner: str = ME, title: str = "A chat") -> KeptChat:
    return KeptChat(id, owner, title, "chat", "", len(messages), messages)


def small_chat(id: str = "chat-1", owner: str = ME, said: str = "It is a cat.") -> KeptChat:
    return chat(message("t1", None, "What is it?"), message("a2", "t1", said), id=id, owner=owner)


def with_picture(made: KeptChat, file: Path) -> KeptChat:
    picture = KeptPicture(file.name, "image/png", file.stat().st_size, file=str(file))
    return replace(made, messages=(replace(made.messages[0], pictures=(picture,)), *made.messages[1:]))
