"""A look into the engine: a chat as tokens, and requests whose attention is noted as they are computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from tokenizers import Tokenizer

from llava_core.checkpoints.base import LoadedCheckpoint, Prompt
from llava_core.config import InspectLimits
from llava_core.engines.transformers.attention import KVShape
from llava_core.engines.transformers.detokenize import texts_of_tokens
from llava_core.engines.transformers.watch import Watch
from llava_core.errors import BadRequest, Overloaded
from llava_core.inspection import PromptPiece, SeenPrompt
from llava_core.types import Begun, Request, Sampling


class Inspector:
    """Watches one request at a time."""

    def __init__(self, loaded: LoadedCheckpoint, limits: InspectLimits | None = None) -> None:
        self._loaded = loaded
        self._limits = limits or InspectLimits()
        self._turn = asyncio.Lock()
        self._waiting = 0
        row = 4 * KVShape.of(loaded.model).layers * loaded.info.context_length
        self._most_rows = max(16, self._limits.memory_bytes // row)

    @asynccontextmanager
    async def taking_turns(self) -> AsyncGenerator[None]:
        if self._waiting > self._limits.max_waiting:
            raise Overloaded("others are looking into this model; try again in a moment", retry_after=2.0)
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    def watch(self, request: Request, first: int, count: int) -> tuple[Watch, Request]:
        """What notes where these tokens looked, and the request to compute for it. Raises BadRequest."""
        if not request.images:
            raise BadRequest("there is no picture in this chat to look at", param="messages")
        answer = request.begun.token_ids if request.begun else ()
        most = min(self._limits.max_tokens, self._most_rows)
        if not answer:
            raise BadRequest("the answer is missing; send its tokens as continue_token_ids", param="continue_token_ids")
        if len(answer) > most:
            raise BadRequest(
                f"the answer has {len(answer)} tokens, and at most {most} are looked at; send fewer of them",
                param="continue_token_ids",
            )
        if first < 0 or count < 1 or first + count > len(answer):
            raise BadRequest(
                f"tokens {first} to {first + count} are asked for, but the answer has {len(answer)}", param="first"
            )
        placeholder = self._loaded.facts.image_token_id
        if placeholder in answer:
            raise BadRequest("continue_token_ids holds a picture's placeholder", param="continue_token_ids")
        # The last token is only chosen here, not read. Ids are taken as they are: what ends an answer is among them.
        sampling = Sampling(max_tokens=len(answer), temperature=0.0)
        watched = Watch(len(answer), self._most_rows)
        return watched, replace(request, sampling=sampling, begun=Begun("", answer[:-1]) if answer[1:] else None)


def seen_prompt(loaded: LoadedCheckpoint, tokenizer: Tokenizer, prompt: Prompt, answer: Sequence[int]) -> SeenPrompt:
    """A chat as its model reads it; a checkpoint lays out its pictures."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    pieces: list[PromptPiece] = []
    at = 0
    for number, placed in enumerate(prompt.images):
        pieces += _pieces(tokenizer, prompt.ids[at : placed.start], special)
        pieces.append(PromptPiece("picture", placed.image.tokens, picture=number))
        at = placed.start + placed.image.tokens
    pieces += _pieces(tokenizer, prompt.ids[at:], special)
    pictures = tuple(loaded.layout(placed.image).at(placed.start, placed.image.tokens) for placed in prompt.images)
    texts: list[str] = []
    for text, took in texts_of_tokens(tokenizer, [*prompt.ids[-1:], *answer])[1:]:
        # Of a character that several tokens make, the first shows it.
        texts += [text, *[""] * (took - 1)]
    texts = [""] * (len(answer) - len(texts)) + texts
    return SeenPrompt(loaded.info.name, len(prompt.ids), tuple(pieces), pictures, tuple(texts))


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], special: set[int]) -> list[PromptPiece]:
    found: list[PromptPiece] = []
    run: list[int] = []

    def close() -> None:
        if run:
            found.append(PromptPiece("text", len(run), tuple(text for text, _ in texts_of_tokens(tokenizer, run))))
            run.clear()

    for token in ids:
        if token not in special:
            run.append(token)
            continue
        close()
        found.append(PromptPiece("special", 1, (tokenizer.id_to_token(token) or "",)))
    close()
    return found
