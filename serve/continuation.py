"""What has come of an answer, and how the rest of it is asked for elsewhere when its worker is lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llava_core.chat_protocol import as_unfinished_turn
from llava_core.errors import LlavaError, WorkerLost
from llava_core.types import Begun, Chunk, Request


@dataclass
class Progress:
    """One answer as its reader has it. With the ids of its tokens it goes on exactly: the same tokens, the same count,
    the same log-probabilities and form. From its text alone, as with other servers, some things cannot go on."""

    request: Request
    _texts: list[str] = field(default_factory=list[str])
    _ids: list[int] = field(default_factory=list[int])
    _exact: bool = True
    _count: int = 0
    """Tokens, or where their ids are not told, pieces of text."""
    _uncounted: int = 0
    """Those that the present worker was given as text and so takes for the prompt's."""

    def took(self, chunk: Chunk) -> Chunk:
        """Take note of a chunk; returns it as the reader should have it."""
        if chunk.text or chunk.token_ids:
            self._texts.append(chunk.text)
            self._ids += chunk.token_ids
            self._exact = self._exact and bool(chunk.token_ids)
            self._count += len(chunk.token_ids) or 1
        if chunk.usage is None or not self._uncounted:
            return chunk
        usage, before = chunk.usage, self._uncounted
        prompt = max(0, usage.prompt_tokens - before)
        completion, cached = usage.completion_tokens + before, min(usage.cached_tokens, prompt)
        whole = replace(usage, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
        return replace(chunk, usage=whole)

    def rest(self, cause: LlavaError) -> Request:
        """The request for what is missing. Raises WorkerLost where another worker could not go on as this one would
        have."""
        text, most = "".join(self._texts), self.request.sampling.max_tokens
        if most is not None and self._count >= most:
            # Only its end is missing, which nobody can be asked for.
            raise self._impossible(cause, "no token left to add")
        if self._exact:
            return replace(self.request, begun=Begun(text, tuple(self._ids)))
        self._check_text_is_enough(cause)
        self._uncounted = self._count
        return as_unfinished_turn(replace(self.request, begun=Begun(text, ())), tokens=self._count)

    def _check_text_is_enough(self, cause: LlavaError) -> None:
        sampling = self.request.sampling
        hindrances = {
            "log-probabilities": sampling.logprobs is not None,
            "a form to hold it to": sampling.grammar is not None,
            "a presence or frequency penalty": bool(sampling.presence_penalty or sampling.frequency_penalty),
        }
        for hindrance, is_there in hindrances.items():
            if is_there:
                raise self._impossible(cause, hindrance)

    def _impossible(self, cause: LlavaError, hindrance: str) -> WorkerLost:
        sentence = f"{cause.message} (with {hindrance}, no other worker can go on with this answer)"
        return WorkerLost(sentence, request_id=self.request.id)
