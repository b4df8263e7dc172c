"""How much of a long prompt a step may take while answers run, so that their readers see no pause."""

from __future__ import annotations

_PAUSE_S = 0.1
"""Between two tokens of a running answer; a reader sees longer ones as a stutter."""
_DECODES = 2.0
"""A model that is slower than that pauses for as long as so many of its own decode steps take."""
_LEAST = 32
"""Tokens at which a step still is worth its reading of all weights."""
_AT_ONCE_S = 0.05
"""A step that begins later than this found the device idle."""
_NEW = 0.3
"""Weight of the latest step beside those before."""


class Pace:
    """Learns from steps that are done; belongs to the model's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._token_s: float | None = None
        self._decode_s: float | None = None
        self._unwaited: tuple[int, float, float] | None = None
        """Tokens of steps that the device may still be at, since when, and when it was left to them."""

    def room(self) -> int:
        """Tokens to prefill in the next step. A step costs something before its first token, too: measured per token
        that makes shorter steps seem slower, and where both agree the step takes as long as it may."""
        if self._token_s is None:
            return self._most
        pause = max(_PAUSE_S, _DECODES * (self._decode_s or 0.0))
        return min(max(int(pause / self._token_s), _LEAST), self._most)

    def took(self, prefilled: int, began: float, ended: float, *, waited_for: bool) -> None:
        """A step was done, between these moments in seconds, that prefilled so many tokens (pictures' work counted as
        tokens) beside its decodes. One that was not waited for, since it drew nothing, may still be computed while the
        next one is."""
        since = began
        if self._unwaited is not None and began - self._unwaited[2] < _AT_ONCE_S:
            prefilled, since = prefilled + self._unwaited[0], self._unwaited[1]
        self._unwaited = None if waited_for else (prefilled, since, ended)
        if not waited_for:
            return
        seconds = ended - since
        if not prefilled:
            self._decode_s = _mixed(self._decode_s, seconds)
        elif prefilled >= min(_LEAST, self._most):
            self._token_s = _mixed(self._token_s, max(seconds, 1e-6) / prefilled)


def _mixed(before: float | None, latest: float) -> float:
    return latest if before is None else before + _NEW * (latest - before)
