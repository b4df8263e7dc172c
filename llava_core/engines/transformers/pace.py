"""How much of a long prompt a step may take while answers run, so that their readers see no pause."""

from __future__ import annotations

_PAUSE_S = 0.1
"""Between two tokens of a running answer; a reader sees longer ones as a stutter."""
_DECODES = 2.0
"""A model that is slower than that pauses for as long as so many of its own decode steps take."""
_LEAST = 32
"""Tokens at which a step still is worth its reading of all weights."""
_NEW = 0.3
"""Weight of the latest step beside those before."""


class Pace:
    """Learns from steps that are done; belongs to the model's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._token_s: float | None = None
        self._decode_s: float | None = None

    def room(self) -> int:
        """Tokens to prefill in the next step. A step costs something before its first token, too: measured per token
        that makes shorter steps seem slower, and where both agree the step takes as long as it may."""
        if self._token_s is None:
            return self._most
        pause = max(_PAUSE_S, _DECODES * (self._decode_s or 0.0))
        return min(max(int(pause / self._token_s), _LEAST), self._most)

    def took(self, prefilled: int, seconds: float) -> None:
        """A step was done that prefilled so many tokens (pictures' work counted as tokens) beside its decodes."""
        if not prefilled:
            self._decode_s = _mixed(self._decode_s, seconds)
        elif prefilled >= min(_LEAST, self._most):
            self._token_s = _mixed(self._token_s, max(seconds, 1e-6) / prefilled)


def _mixed(before: float | None, latest: float) -> float:
    return latest if before is None else before + _NEW * (latest - before)
