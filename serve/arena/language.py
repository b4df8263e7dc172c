"""The language of what was asked, by its English name: found by CLD2, as it was for the data that LMArena published."""

from __future__ import annotations

from functools import cache
from typing import Any

UNKNOWN = "unknown"
_MOST = 20_000
"""Characters that are looked at."""


def language_of(text: str) -> str:
    """ "English", "German", "Chinese"; empty where too few words tell it, or without the package."""
    detector = _detector()
    if detector is None:
        return ""
    # CLD2 takes neither control characters nor halves of characters.
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:_MOST])
    try:
        found = detector.detect(plain, bestEffort=True)[2][0]
    except detector.error:
        return ""
    name, code = found[0], found[1]
    if code == "un" or name.startswith("X_"):
        return ""
    return "Chinese" if code.startswith("zh") else name.replace("_", " ").title()[:40]


@cache
def _detector() -> Any:
    try:
        import pycld2
    except ImportError:
        return None
    return pycld2
