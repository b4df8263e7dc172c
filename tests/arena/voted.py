"""Battles that were voted on, for tests of ratings, store and pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from serve.store.battles import VotedBattle

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def battle(number: int = 1, a: str = "ant", b: str = "bee", verdict: Any = "a", **more: Any) -> VotedBattle:
    fields: dict[str, Any] = {"owner": "me", "voted_at": NOON, "categories": ("text",), **more}
    return VotedBattle(id=f"battle-{number}", models=(a, b), verdict=verdict, **fields)
