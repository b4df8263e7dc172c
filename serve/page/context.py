"""What every tab is given to build itself with."""

from __future__ import annotations

from dataclasses import dataclass

from llava_core.config import ImageLimits
from serve.page.actions import Rooms
from serve.page.examples import Example
from serve.page.feedback import Feedback
from serve.page.models import ModelList
from serve.page.source import AnswerSource


@dataclass(frozen=True)
class PageContext:
    source: AnswerSource
    rooms: Rooms
    models: ModelList
    feedback: Feedback
    examples: tuple[Example, ...]
    limits: ImageLimits
    readers_at_once: int
    """How many answers one column of the page streams at the same time; later ones wait their turn."""
    embed: bool = False
