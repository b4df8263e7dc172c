"""A chat as the command line keeps it: turns, a system prompt, pictures waiting for the next question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_core.config import ImageLimits
from llava_core.errors import BadRequest
from llava_core.images import read_image_file, to_data_url
from llava_core.types import ImagePart, Message, TextPart, assistant, system, user


@dataclass(frozen=True)
class Picture:
    """A picture as it is sent and the name it is shown under."""

    name: str
    part: ImagePart


@dataclass(frozen=True)
class Turn:
    """A question and, once there is one, its answer and who gave it."""

    text: str
    pictures: tuple[Picture, ...] = ()
    answer: str = ""
    model: str = ""

    @property
    def question(self) -> Message:
        """Pictures first, as the page sends them."""
        return user(*(picture.part for picture in self.pictures), *([TextPart(self.text)] if self.text else []))


@dataclass
class Chat:
    """A turn without an answer failed or was stopped before its first word: it can be asked again, but the model
    does not see it with later questions."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list[Turn])
    attached: list[Picture] = field(default_factory=list[Picture])

    def ask(self, text: str) -> Sequence[Message]:
        """A new turn with the attached pictures; what to send."""
        self._drop_unanswered()
        self.turns.append(Turn(text, tuple(self.attached)))
        self.attached.clear()
        return self.messages()

    def ask_again(self) -> Sequence[Message]:
        """The last question without its answer; what to send."""
        if not self.turns:
            raise BadRequest("there is nothing to ask again yet")
        self.turns[-1] = replace(self.turns[-1], answer="", model="")
        return self.messages()

    def keep_answer(self, text: str, model: str) -> None:
        """What was answered to the last question, whole or up to where it was stopped."""
        self.turns[-1] = replace(self.turns[-1], answer=text, model=model)

    def reset(self) -> None:
        """Forget turns and pictures; the system prompt stays."""
        self.turns.clear()
        self.attached.clear()

    def messages(self) -> Sequence[Message]:
        """The whole chat in the words of the protocol."""
        messages = [system(self.system)] if self.system else []
        for turn in self.turns:
            messages.append(turn.question)
            if turn.answer:
                messages.append(assistant(turn.answer))
        return messages

    def _drop_unanswered(self) -> None:
        if self.turns and not self.turns[-1].answer:
            self.turns.pop()


def read_picture(name: str) -> Picture:
    """The picture in a file; a web address or data URL is passed on as it is. Raises BadImage."""
    if name.startswith(("http://", "https://", "data:")):
        return Picture(name[:80], ImagePart(name))
    path = Path(name).expanduser()
    return Picture(path.name, ImagePart(to_data_url(read_image_file(path, ImageLimits()))))
