"""An engine without a model: its reply names what it received, word by word and always the same way.

For tests and for work on the page. It keeps every promise of an engine (limits, queue, stop strings, usage,
cancellation), so what passes with it fails elsewhere only for the model's sake.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice

from llava_core.config import EngineLimits, ImageLimits
from llava_core.errors import BadRequest, ContextOverflow, EngineFailure, LlavaError, Overloaded
from llava_core.images import ImageLoader
from llava_core.types import (
    Begun,
    Chunk,
    EngineStatus,
    FinishReason,
    Message,
    ModelInfo,
    Phases,
    Request,
    Sampling,
    Usage,
    assistant,
)

NOTE = "echo: no model, it only repeats what it received"
_REMEMBERED = 512
_RUNNING = 8


class EchoEngine:
    """`delay_s` passes between words, `first_token_s` before the first. With `fail_after` N it raises `failure`
    after N words of every reply. `sleep` and `clock` are there to be replaced by a test's own time."""

    def __init__(
        self,
        name: str,
        *,
        images: ImageLimits | None = None,
        limits: EngineLimits | None = None,
        delay_s: float = 0.01,
        first_token_s: float = 0.0,
        context_length: int = 4096,
        tokens_per_image: int = 16,
        fail_after: int | None = None,
        failure: type[LlavaError] = EngineFailure,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._info = ModelInfo(
            name=name, engine="echo", context_length=context_length, dtype="none", template="none", note=NOTE
        )
        self._limits = limits or EngineLimits()
        self._loader = ImageLoader(images or ImageLimits())
        self._delay_s = delay_s
        self._first_token_s = first_token_s
        self._tokens_per_image = tokens_per_image
        self._fail_after = fail_after
        self._failure = failure
        self._sleep = sleep
        self._clock = clock
        self._capacity = self._limits.max_running or _RUNNING
        self._slots = asyncio.Semaphore(self._capacity)
        self._running = 0
        self._waiting = 0
        self._last_answer_s = 1.0
        # Fingerprints of what was prefilled, so that a follow-up turn can tell what it would not compute again.
        self._prefixes: OrderedDict[str, None] = OrderedDict()
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        return self._info

    def status(self) -> EngineStatus:
        return EngineStatus(self._running, self._waiting, self._capacity, self._limits.max_waiting)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """A word a chunk, then the finish. Nothing is held before the first chunk is asked for."""
        if self._closed:
            raise EngineFailure("this engine has been stopped; ask another worker", request_id=request.id)
        if request.sampling.grammar is not None:
            raise BadRequest(
                f"{self._info.name} has no model that could hold its answer to a schema or pattern; leave "
                "response_format and structured_outputs out",
                param="structured_outputs" if request.sampling.grammar.kind == "regex" else "response_format",
            )
        arrived = self._clock()
        async with self._slot(request) as sizes:
            admitted = self._clock()
            prompt_tokens = self._prompt_tokens(request.messages)
            room = self._info.context_length - prompt_tokens
            if room < 1:
                raise ContextOverflow(
                    f"this chat has {prompt_tokens} tokens, the context of {self._info.name} holds "
                    f"{self._info.context_length}; shorten it or start a new chat",
                    param="messages",
                )
            most = min(request.sampling.max_tokens or self._limits.max_answer_tokens, room)
            text, finish = _cut(_reply(request, sizes), most, request.sampling)
            words = split_words(text)
            cached = self._cached_tokens(request, prompt_tokens)
            said = _said(request.begun, words)
            await self._sleep(self._first_token_s)
            first = self._clock()
            for number, word in enumerate(words[said:], said):
                if number == self._fail_after:
                    raise self._failure(
                        f"{self._info.name} failed after {number} words, as it was told to", request_id=request.id
                    )
                if number > said:
                    await self._sleep(self._delay_s)
                yield Chunk(text=word, token_ids=(number,))
            self._remember(request, text)
            usage = Usage(prompt_tokens, len(words), len(sizes) * self._tokens_per_image, cached)
            phases = Phases(arrived, admitted, first, self._clock())
            yield Chunk(finish_reason=finish, usage=usage, phases=phases)

    async def aclose(self) -> None:
        self._closed = True
        await self._loader.aclose()

    @asynccontextmanager
    async def _slot(self, request: Request) -> AsyncGenerator[list[tuple[int, int]]]:
        """One of the running places, after a bounded wait in which the pictures are decoded, and their sizes; given
        back however the answer ends."""
        limits = self._limits
        if self.status().full:
            raise self._overloaded(f"{self._waiting} requests already wait for {self._info.name}")
        self._waiting += 1
        try:
            async with asyncio.timeout(limits.max_wait_s):
                sizes = [picture.size for picture in await self._loader.load(request.images)]
                await self._slots.acquire()
        except TimeoutError as cause:
            raise self._overloaded(f"{self._info.name} had no room for {limits.max_wait_s:g} s") from cause
        finally:
            self._waiting -= 1
        self._running += 1
        started = self._clock()
        try:
            yield sizes
        finally:
            self._running -= 1
            self._slots.release()
            self._last_answer_s = self._clock() - started

    def _overloaded(self, what: str) -> Overloaded:
        rounds = (self._waiting + 1) / self._capacity
        wait = max(1.0, round(rounds * self._last_answer_s, 1))
        return Overloaded(f"{what}; try again in {wait:g} s", retry_after=wait)

    def _prompt_tokens(self, messages: Sequence[Message]) -> int:
        words = sum(len(split_words(message.text)) for message in messages)
        return words + self._tokens_per_image * sum(len(message.images) for message in messages)

    def _cached_tokens(self, request: Request, prompt_tokens: int) -> int:
        """Tokens of the longest beginning of this chat that was prefilled before; the last one never counts."""
        for length in range(len(request.messages), 0, -1):
            beginning = request.messages[:length]
            if _fingerprint(request.owner, beginning) in self._prefixes:
                return min(self._prompt_tokens(beginning), max(prompt_tokens - 1, 0))
        return 0

    def _remember(self, request: Request, text: str) -> None:
        messages = request.messages
        if request.continue_final:
            messages, text = messages[:-1], messages[-1].text + text
        answer = assistant(text)
        for beginning in (messages, (*messages, answer)):
            self._prefixes[_fingerprint(request.owner, beginning)] = None
        while len(self._prefixes) > _REMEMBERED:
            self._prefixes.popitem(last=False)


def split_words(text: str) -> list[str]:
    """What counts as a token here: a word with the white space after it; joined they are the text again."""
    return re.findall(r"^\s+|\S+\s*", text)


def describe(messages: Sequence[Message], pictures: Sequence[tuple[int, int]]) -> str:
    """The reply to a chat: its turns, the pictures in each with their sizes, the system prompt, the last words."""
    sizes = [f"{width}x{height}" for width, height in pictures]
    turns = [message for message in messages if message.role != "system"]
    lines = [f"I received {_count(len(turns), 'turn')} and {_count(len(sizes), 'image')}.", ""]
    number = 0
    for message in messages:
        own, sizes = sizes[: len(message.images)], sizes[len(message.images) :]
        seen = f"{_count(len(own), 'image')} ({', '.join(own)})" if own else "no image"
        if message.role == "system":
            continue
        number += 1
        lines.append(f"{number}. {message.role}: {seen}, {_count(len(split_words(message.text)), 'word')}")
    system = [message.text for message in messages if message.role == "system"]
    if system:
        lines += ["", f"System prompt: {' '.join(system)}"]
    last = next((message.text for message in reversed(messages) if message.role == "user"), "")
    lines += ["", f"You said: {last}"]
    return "\n".join(lines)


def _reply(request: Request, pictures: Sequence[tuple[int, int]]) -> str:
    """What is new to say: all of the reply, or where a begun reply is to be continued, the rest of it."""
    if not request.continue_final:
        return describe(request.messages, pictures)
    begun = request.messages[-1].text
    whole = describe(request.messages[:-1], pictures)
    return whole[len(begun) :] if whole.startswith(begun) else f" (continued) {whole}"


def _said(begun: Begun | None, words: Sequence[str]) -> int:
    """How many of the reply's words are said already. Its ids count them."""
    if begun is None:
        return 0
    said = len(begun.token_ids)
    if begun.token_ids != tuple(range(said)) or begun.text != "".join(words[:said]):
        raise BadRequest("continue_token_ids is not how this reply begins", param="continue_token_ids")
    return said


def _cut(text: str, most: int, sampling: Sampling) -> tuple[str, FinishReason]:
    """Text up to the first stop string or the token limit, whichever comes first, and which it was. A reply that
    must not end by itself is said again and again."""
    words = split_words(text)
    if sampling.ignore_eos and words:
        # A line break, so that the last word of one round and the first of the next stay two.
        words = list(islice(cycle([*words[:-1], words[-1] + "\n"]), most + 1))
    kept = "".join(words[:most])
    ends = [at for stop in sampling.stop if (at := kept.find(stop)) >= 0]
    if ends:
        return kept[: min(ends)], "stop"
    return kept, "length" if len(words) > most else "stop"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _fingerprint(owner: str, messages: Sequence[Message]) -> str:
    return hashlib.sha256(repr((owner, tuple(messages))).encode()).hexdigest()
