"""What every tab is given to build itself with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from llava_core.config import ImageLimits
from serve.arena.battles import Arena
from serve.arena.blind_rooms import BlindRooms
from serve.arena.comparing import OpenVotes
from serve.arena.ledger import Ledger
from serve.page.actions import Rooms
from serve.page.examples import Example
from serve.page.feedback import Feedback
from serve.page.history import History
from serve.page.inspection import Inspections
from serve.page.models import ModelList
from serve.page.pictures import PictureDesk
from serve.page.source import AnswerSource
from serve.page.status import StatusBoard
from serve.page.uploads import Uploads
from serve.quotas import Quotas


@dataclass(frozen=True)
class PageContext:
    source: AnswerSource
    rooms: Rooms
    models: ModelList
    feedback: Feedback
    history: History
    examples: tuple[Example, ...]
    limits: ImageLimits
    desk: PictureDesk
    uploads: Uploads
    readers_at_once: int
    """How many answers Gradio streams to programs at the same time; later ones wait their turn."""
    embed: bool = False
    quotas: Quotas = field(default_factory=Quotas)
    """What one address may ask for, or one name on a page with a login."""

    @cached_property
    def inspections(self) -> Inspections:
        return Inspections(self.source, self.desk)

    @cached_property
    def status(self) -> StatusBoard:
        """One for all who look."""
        return StatusBoard(self.source)

    @cached_property
    def arena(self) -> Arena:
        """The same for all tabs that show battles or what comes of them."""
        rooms, ledger = BlindRooms.beside(self.rooms), Ledger(self.history.keeper)
        return Arena(rooms, self.models, ledger, recording=self.feedback.is_on, end=self.history.end)

    @cached_property
    def open_votes(self) -> OpenVotes:
        return OpenVotes(self.rooms, self.history.keeper, recording=self.feedback.is_on, end=self.history.end)
