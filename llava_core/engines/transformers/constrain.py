"""Holds answers to a JSON schema or pattern: a grammar is compiled once, and masks the logits of its own requests.

xgrammar does the work; it is imported when the first such request comes.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import torch

from llava_core.config import GrammarLimits
from llava_core.errors import BadRequest, MissingDependency, Overloaded
from llava_core.types import Grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INSTALL = "pip install --no-deps xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2"
# "[14:02:11] /project/cpp/regex_converter.cc:83: " stands before what xgrammar has to say.
_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_JSON_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BITS = 32


class Constraint:
    """How far one answer has come in its grammar. Belongs to the model thread."""

    def __init__(self, matcher: Any, vocabulary: int, ending: Collection[int]) -> None:
        self._matcher = matcher
        self._ending = sorted(token for token in ending if token < vocabulary)
        self._words = torch.zeros(1, -(-vocabulary // _BITS), dtype=torch.int32)
        self._shifts = torch.arange(_BITS, dtype=torch.int32)

    def mask(self, row: torch.Tensor) -> None:
        """Leave `row` (vocabulary,) only the tokens with which the answer may go on, ends where it is complete."""
        if not self._matcher.fill_next_token_bitmask(self._words, 0):
            return
        # (words,) -> (words, 32) -> (vocabulary,)
        allowed = ((self._words[0, :, None] >> self._shifts) & 1).bool().flatten()[: len(row)]
        row.masked_fill_(~allowed.to(row.device), float("-inf"))
        if bool(row.isfinite().any()):
            return
        ends = [token for token in self._ending if bool(allowed[token])]
        if not ends:
            raise BadRequest(
                "this model's vocabulary has no token with which the answer could go on in the form asked for; "
                "change the schema or pattern",
                param="response_format",
            )
        # It can only end here, whatever `min_tokens` asks.
        row[ends] = 0.0

    def took(self, token: int) -> None:
        if not self._matcher.is_terminated():
            self._matcher.accept_token(token)


class Grammars:
    """The grammars of one model, compiled one after the other on a thread of their own and kept while they are used.

    Compiling cannot be interrupted. What takes too long is refused, and until it is done others that are not kept
    already are told to come back.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        ending: Collection[int],
        never: Collection[int] = (),
        limits: GrammarLimits | None = None,
    ) -> None:
        """Tokens in `never` are no text; `ending` ones end an answer."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ending = frozenset(ending)
        self._never = frozenset(never)
        self._limits = limits or GrammarLimits()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._compiler: Any = None
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()

    async def constraint(self, grammar: Grammar, *, begun: str = "") -> Constraint:
        """For one answer, of which `begun` is there already. Raises BadRequest, MissingDependency, Overloaded."""
        compiled = self._kept.get(grammar) or await self._compiled(grammar)
        self._keep(grammar, compiled)
        return await asyncio.to_thread(self._begin, compiled, begun)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _compiled(self, grammar: Grammar) -> Any:
        task = self._pool.submit(self._compile, grammar)
        waiting = asyncio.wrap_future(task)
        done, _ = await asyncio.wait({waiting}, timeout=self._limits.compile_s)
        if done:
            return waiting.result()
        name, seconds = _field(grammar), self._limits.compile_s
        # A failure that comes later is nobody's any more.
        waiting.add_done_callback(lambda late: late.cancelled() or late.exception())
        if task.cancel():
            raise Overloaded("others' schemas are still being prepared; try again a little later", retry_after=seconds)
        raise BadRequest(
            f"{name} takes longer than {seconds:g} s to prepare; simplify it, above all large repetitions", param=name
        )

    def _keep(self, grammar: Grammar, compiled: Any) -> None:
        self._kept[grammar] = compiled
        self._kept.move_to_end(grammar)
        while (
            len(self._kept) > 1 and sum(one.memory_size_bytes for one in self._kept.values()) > self._limits.cache_bytes
        ):
            self._kept.popitem(last=False)

    def _compile(self, grammar: Grammar) -> Any:
        field = _field(grammar)
        if grammar in self._kept:
            # It was asked for twice while it was being compiled.
            return self._kept[grammar]
        _check_counts(grammar, self._limits.max_count)
        if self._compiler is None:
            self._compiler = self._make_compiler()
        try:
            if grammar.kind == "regex":
                return self._compiler.compile_regex(grammar.text)
            schema = grammar.text or '{"type":"object"}'
            return self._compiler.compile_json_schema(schema, max_whitespace_cnt=self._limits.max_space)
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadRequest(f"{field} cannot be used: {_reason(error)}", param=field) from None

    def _make_compiler(self) -> Any:
        xgrammar = _library()
        tokenizer = cast(Any, self._tokenizer)
        kind = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=self._vocabulary)
        # Names of special tokens are no text: an empty word is one that the library never allows.
        special = set(tokenizer.all_special_ids) | self._never
        special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        words = [""] * self._vocabulary
        for word, token in tokenizer.get_vocab().items():
            if token < self._vocabulary and token not in special:
                words[token] = word
        info = xgrammar.TokenizerInfo(
            words,
            kind.vocab_type,
            vocab_size=self._vocabulary,
            stop_token_ids=sorted(token for token in self._ending if token < self._vocabulary),
            add_prefix_space=kind.add_prefix_space,
        )
        return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def _begin(self, compiled: Any, begun: str) -> Constraint:
        matcher = _library().GrammarMatcher(compiled)
        if begun and not matcher.accept_string(begun):
            raise BadRequest("the begun answer does not have the form asked for; start it anew", param="messages")
        return Constraint(matcher, self._vocabulary, self._ending)


def _library() -> Any:
    try:
        return importlib.import_module("xgrammar")
    except ImportError:
        raise MissingDependency(
            f"this worker lacks xgrammar, which holds answers to a schema or pattern; {_INSTALL}"
        ) from None


def _field(grammar: Grammar) -> str:
    return "structured_outputs.regex" if grammar.kind == "regex" else "response_format"


def _reason(error: Exception) -> str:
    lines = _PLACE.sub("", str(error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _check_counts(grammar: Grammar, most: int) -> None:
    """Refuse repetitions that would take minutes, and references to somewhere else."""
    if grammar.kind == "json_object":
        return
    if grammar.kind == "regex":
        counts = [int(count) for pair in _COUNTS.findall(grammar.text) for count in pair if count]
    else:
        schema: Any = json.loads(grammar.text)
        counts = list(_schema_counts(schema, most))
    if any(count > most for count in counts):
        raise BadRequest(
            f"{_field(grammar)} repeats something {max(counts)} times, at most {most} are taken", param=_field(grammar)
        )


def _schema_counts(schema: Any, most: int) -> Iterator[int]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(cast(list[Any], part))
        elif isinstance(part, dict):
            fields = cast(dict[str, Any], part)
            for name in _JSON_COUNTS:
                value = fields.get(name)
                if isinstance(value, int | float):
                    yield int(min(value, most + 1))
            pattern = fields.get("pattern")
            if isinstance(pattern, str):
                yield from (int(count) for pair in _COUNTS.findall(pattern) for count in pair if count)
            reference = fields.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise BadRequest(
                    f"response_format refers to {reference[:100]!r}; only references within the schema (#/…) work",
                    param="response_format",
                )
            waiting.extend(fields.values())
