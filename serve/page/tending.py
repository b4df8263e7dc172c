"""What a person does with the list of their chats: look, search, rename, share, bring in, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from llava_core.errors import BadRequest
from serve.page.actions import Rooms
from serve.page.messages import Message, read_owner
from serve.store.records import Listed


class Forgetful(Protocol):
    """Holds what a person wrote elsewhere than in their chats."""

    async def forget(self, owner: str) -> None: ...


async def listed(rooms: Rooms, message: Message) -> dict[str, Any]:
    """The owner's chats as the page draws them; those with the words of `query`, if there are any."""
    looks = message.get("looks")
    chats, older = await rooms.history.chats(
        _owner(message), str(message.get("query") or ""), looks if isinstance(looks, int) else 1
    )
    return {"chats": [_row(chat, rooms) for chat in chats], "older": older}


async def tend(rooms: Rooms, message: Message, elsewhere: Sequence[Forgetful] = ()) -> dict[str, Any]:
    """Do to a chat, or to a comparison with all its columns, what the message says; who deletes all of them is
    forgotten `elsewhere` too. Raises BadRequest where the owner has no such thing."""
    owner, id = _owner(message), str(message.get("id") or "")
    history = rooms.history
    match message.get("do"):
        case "rename":
            title = " ".join(str(message.get("title") or "").split())
            if not title:
                raise BadRequest("a chat's name cannot be empty", param="title")
            done: Mapping[str, Any] | None = {} if await history.rename(id, owner, title) else None
        case "delete":
            await rooms.drop(owner, [id])
            gone = await history.delete(id, owner)
            # Another tab may have come back to it meanwhile.
            await rooms.drop(owner, [id, *gone])
            await rooms.forget_ratings(gone)
            done = {"gone": gone} if gone else None
        case "delete all":
            await rooms.drop(owner)
            for other in elsewhere:
                await other.forget(owner)
            gone = await history.delete_all(owner)
            await rooms.forget_ratings(gone, owner)
            done = {"deleted": len(gone)}
        case "import":
            name, text = str(message.get("name") or "the file")[:200], str(message.get("text") or "")
            done = {"columns": await rooms.bring_in(id, owner, name, text)}
        case "share":
            token = await history.share(id, owner)
            done = {"token": token} if token else None
        case "withdraw":
            done = {} if await history.withdraw(id, owner) else None
        case other:
            raise BadRequest(f"the page does not know how to {other!r}; reload it")
    if done is None:
        raise BadRequest("this chat is not there any more", param="id")
    return dict(done)


def _owner(message: Message) -> str:
    owner = read_owner(message)
    if not owner:
        raise BadRequest("this browser has no key to its chats; reload the page", param="owner")
    return owner


def _row(chat: Listed, rooms: Rooms) -> dict[str, Any]:
    return {
        "id": chat.id,
        "title": chat.title,
        "place": chat.place,
        "updated": chat.updated_at.timestamp(),
        "models": chat.models,
        "pictures": chat.pictures,
        "shared": chat.shared,
        "found": chat.found,
        "running": any(map(rooms.is_answering, [chat.id, *(column.id for column in chat.columns)])),
        "columns": [asdict(column) for column in chat.columns],
    }
