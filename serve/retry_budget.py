"""How many requests may be sent a second time: few, so that trouble is not multiplied."""

from __future__ import annotations

from llava_core.config import RetryLimits


class RetryBudget:
    """Each request saves up a share of a retry. A small reserve serves whoever asks seldom."""

    def __init__(self, limits: RetryLimits | None = None) -> None:
        self._limits = limits or RetryLimits()
        self._saved = float(self._limits.reserve)

    def asked(self) -> None:
        """A request came."""
        self._saved = min(self._limits.most_saved, self._saved + self._limits.share)

    def spend(self) -> bool:
        """Whether it may be sent once more."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
