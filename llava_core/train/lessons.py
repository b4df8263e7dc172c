"""From a sample to ids and what is learned of them, by the same code that makes prompts when the model serves.

Each answer's prompt is made as the worker makes it. The whole chat must begin with every one of these prompts, and
what follows one, up to the token that ends the answer, is what is learned. Where that does not hold, the sample is
refused with the reason: nothing is masked silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_core.checkpoints.prompting import Prompter
from llava_core.errors import LlavaError
from llava_core.train.records import BadSample
from llava_core.types import Message, user

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lesson:
    """`ids` with one placeholder per feature row; tokens of the spans in `taught` are learned. Picture *i*
    starts at `starts[i]`."""

    ids: tuple[int, ...]
    taught: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]

    def labels(self, ignored: int = -100) -> list[int]:
        """Per position the token to be said next, or `ignored`."""
        found = [ignored] * len(self.ids)
        for begin, end in self.taught:
            found[begin - 1 : end - 1] = self.ids[begin:end]
        return found


@dataclass(frozen=True)
class Teacher:
    """How one checkpoint's samples become lessons. `plain` is stage 1's form: a picture and its caption."""

    tokenizer: PreTrainedTokenizerBase
    prompter: Prompter
    ends: frozenset[int]
    stops: tuple[str, ...] = ()
    plain: bool = False

    @classmethod
    def for_captions(cls, tokenizer: PreTrainedTokenizerBase, placeholder: int) -> Teacher:
        prompter = Prompter.for_captions(tokenizer, placeholder_id=placeholder)
        return cls(tokenizer, prompter, frozenset(), ("\n",), plain=True)

    def question(self, messages: Sequence[Message], lengths: Sequence[int]) -> tuple[int, ...]:
        """The prompt of the chat's next answer, as it is served."""
        return self.prompter.tokenize(messages, lengths).ids

    def lesson(self, messages: Sequence[Message], lengths: Sequence[int]) -> Lesson:
        """Raises BadSample with the reason; `lengths` are the feature rows of each picture."""
        try:
            return self._captions(messages, lengths) if self.plain else self._chat(messages, lengths)
        except LlavaError as cause:
            raise BadSample(cause.message) from cause

    def _captions(self, messages: Sequence[Message], lengths: Sequence[int]) -> Lesson:
        if not lengths:
            raise BadSample("without a picture there is nothing to align; use it in stage 2")
        if sum(message.role == "assistant" for message in messages) != 1:
            raise BadSample("stage 1 learns one caption for a picture; this is a chat, use it in stage 2")
        whole = self.prompter.tokenize(messages, lengths)
        question = self.question(messages[:-1], lengths)
        return Lesson(whole.ids, ((_after(question, whole.ids), len(whole.ids)),), whole.starts)

    def _chat(self, messages: Sequence[Message], lengths: Sequence[int]) -> Lesson:
        # A question after the last answer, so that the template closes that answer as it does any other.
        whole = self.prompter.tokenize([*messages, user("?")], lengths)
        taught: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = messages[:number]
            shown = sum(len(each.images) for each in before)
            begin = _after(self.question(before, lengths[:shown]), whole.ids)
            taught.append((begin, self._end(whole.ids, begin)))
        end = taught[-1][1]
        return Lesson(whole.ids[:end], tuple(taught), whole.starts)

    def _end(self, ids: Sequence[int], begin: int) -> int:
        """One past the token that ends the answer beginning there."""
        end = next((place for place in range(begin, len(ids)) if ids[place] in self.ends), None)
        if end is not None and not self.stops:
            return end + 1
        tokenizer: Any = self.tokenizer
        for place in range(begin, len(ids) if end is None else end):
            said: str = tokenizer.decode(ids[begin : place + 1])
            if any(stop in said for stop in self.stops):
                return place + 1
        if end is None:
            raise BadSample("the chat template writes nothing that ends an answer, so it could not be learned")
        return end + 1


def _after(question: Sequence[int], whole: Sequence[int]) -> int:
    """Where the answer begins in the whole chat."""
    if tuple(whole[: len(question)]) != tuple(question):
        differs = next(
            (place for place, pair in enumerate(zip(question, whole, strict=False)) if pair[0] != pair[1]), len(whole)
        )
        raise BadSample(
            f"the chat does not begin with the prompt its answer is served from; they differ at token {differs} of "
            f"{len(question)}. The chat template changes earlier turns, or the answer begins within a token"
        )
    return len(question)
