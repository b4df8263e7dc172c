"""What a load is: how many people chat, how often, with which pictures and questions, all decided by one seed."""

from __future__ import annotations

import base64
import colorsys
import io
import random
from dataclasses import dataclass, replace

from llava_core.errors import BadRequest
from llava_core.types import ImagePart, Message, Part, Sampling, TextPart

_MOST_PIXELS = 40_000_000


@dataclass(frozen=True)
class LoadPlan:
    """A load, the same for every target that it is put on.

    Without `request_rate`, `users` people chat side by side, each `rounds` chats of `turns` turns one after the
    other. With it, `users * rounds` chats begin at random moments, so that on average `request_rate` requests come a
    second, however slow the answers are. With `duration_s`, chats begin for that long instead.
    """

    users: int = 4
    turns: int = 3
    rounds: int = 1
    duration_s: float | None = None
    request_rate: float | None = None
    think_time_s: float = 0.0
    images: int = 1
    """Pictures in a chat's first question."""
    image_size: tuple[int, int] = (672, 448)
    same_picture: bool = False
    prompt_words: int = 12
    system: str = ""
    max_tokens: int = 32
    temperature: float = 0.0
    ignore_eos: bool = False
    warm_up: int = 0
    """Chats before the measured ones, which are not reported."""
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("--users", self.users, 1)
        _at_least("--turns", self.turns, 1)
        _at_least("--rounds", self.rounds, 1)
        _at_least("--images", self.images, 0)
        _at_least("--prompt-words", self.prompt_words, 1)
        _at_least("--warm-up", self.warm_up, 0)
        _at_least("--think-time", self.think_time_s, 0)
        for option, value in (("--duration", self.duration_s), ("--request-rate", self.request_rate)):
            if value is not None and not value > 0:
                raise BadRequest(f"{option} must be more than 0, not {value:g}", param=option)
        width, height = self.image_size
        if min(width, height) < 1 or width * height > _MOST_PIXELS:
            raise BadRequest(f"--image-size {width}x{height} is none that can be drawn", param="--image-size")
        self.sampling  # noqa: B018  checks its own ranges

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, ignore_eos=self.ignore_eos)

    @property
    def chats(self) -> int:
        """Where no duration is given."""
        return self.users * self.rounds

    def after(self, loads: int) -> LoadPlan:
        """The same load with other pictures and words, so that no target knows them from an earlier one."""
        return replace(self, seed=self.seed + 1_000_003 * loads)


@dataclass(frozen=True)
class ChatScript:
    """What one person says in one chat."""

    number: int
    owner: str
    system: str
    questions: tuple[tuple[Part, ...], ...]

    def opening(self) -> list[Message]:
        return [Message("system", (TextPart(self.system),))] if self.system else []


def write_script(plan: LoadPlan, number: int) -> ChatScript:
    """Chat `number` of a load; the same plan and number give the same words and pixels."""
    source = random.Random(f"{plan.seed}/{number}")
    pictures = [
        ImagePart(draw_picture(plan.image_size, f"{plan.seed}/{0 if plan.same_picture else number}/{index}"))
        for index in range(plan.images)
    ]
    questions: list[tuple[Part, ...]] = []
    words = source.choices(_WORDS, k=plan.prompt_words)
    for turn in range(plan.turns):
        # The same words in another order: turns can be compared, since their questions take as many tokens.
        source.shuffle(words)
        questions.append((*(pictures if turn == 0 else ()), TextPart(" ".join(words) + "?")))
    return ChatScript(number, f"bench-{plan.seed}-{number}", plan.system, tuple(questions))


def draw_picture(size: tuple[int, int], seed: str) -> str:
    """A data: URL of a JPEG with coloured shapes, decided by `seed`."""
    from PIL import Image, ImageDraw

    source = random.Random(seed)
    width, height = size
    picture = Image.new("RGB", size, _colour(source))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        left, top = source.randrange(width), source.randrange(height)
        box = (left, top, left + source.randint(1, width), top + source.randint(1, height))
        shape = source.choice((draw.ellipse, draw.rectangle))
        shape(box, fill=_colour(source))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def parse_size(text: str) -> tuple[int, int]:
    """`672x448` as width and height. Raises BadRequest."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 16):
        raise BadRequest(f"--image-size {text!r}: write width and height like 672x448", param="--image-size")
    return int(width), int(height)


def _colour(source: random.Random) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(source.random(), 0.3 + 0.7 * source.random(), 0.3 + 0.7 * source.random())
    return round(red * 255), round(green * 255), round(blue * 255)


def _at_least(option: str, value: float, least: float) -> None:
    if not value >= least:
        raise BadRequest(f"{option} must be {least:g} or more, not {value:g}", param=option)


_VOCABULARY = """
what which where who how many is are was the a an this that in on under behind left right large small red green blue
yellow picture photograph shape circle square colour corner edge middle shadow light dark bright near far please tell
describe compare count name list explain see look shown drawn visible between above below and or not
"""
_WORDS = tuple(_VOCABULARY.split())
