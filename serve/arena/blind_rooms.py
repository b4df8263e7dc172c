"""Rooms of models that have no names yet: the server looks into them, the browser sees neither names nor figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from serve.page.actions import Rooms
from serve.page.feedback import Feedback
from serve.page.session import Chat


class BlindRooms(Rooms):
    """Rooms that may be looked into, to see whether both answers are there. No history has them."""

    @classmethod
    def beside(cls, rooms: Rooms) -> BlindRooms:
        """Rooms of their own with the same models and pictures."""
        return cls(rooms._source, rooms._pictures, Feedback(None))

    def chat_of(self, secret: str, owner: str) -> Chat:
        held = self._rooms.get(secret)
        return held.room.chat if held and held.owner == owner else Chat()


def masked(view: Mapping[str, Any], hidden: Mapping[str, str], label: str) -> dict[str, Any]:
    """What is shown, without what tells the model: its name in its own field and in notices, and all figures.

    `hidden` has the labels of all models of the battle, `label` is that of this room's.
    """
    return {name: _masked_field(name, value, hidden, label) for name, value in view.items()}


def _masked_field(name: str, value: Any, hidden: Mapping[str, str], label: str) -> Any:
    if name == "model":
        return label
    if name == "figures":
        return None
    if name == "message" and isinstance(value, str):
        for model in sorted(hidden, key=len, reverse=True):
            # Sentences begin with a capital, whatever they begin with.
            value = re.sub(re.escape(model), hidden[model], value, flags=re.IGNORECASE)
        return value
    return _masked_within(value, hidden, label)


def _masked_within(value: Any, hidden: Mapping[str, str], label: str) -> Any:
    if isinstance(value, Mapping):
        return masked(cast("Mapping[str, Any]", value), hidden, label)
    if isinstance(value, list | tuple):
        return [_masked_within(each, hidden, label) for each in cast("list[Any]", value)]
    return value
