"""The face of the engine on the event loop: checks and prepares a request, hands it to the model thread, streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer

from llava_core.checkpoints.base import LoadedCheckpoint, Prompt
from llava_core.config import BatchLimits, EngineLimits, ImageLimits
from llava_core.engines.load import EngineOptions
from llava_core.engines.transformers.attention import use_ragged_attention
from llava_core.engines.transformers.backends import choose_backend
from llava_core.engines.transformers.constrain import Constraint, Grammars
from llava_core.engines.transformers.detokenize import Detokenizer
from llava_core.engines.transformers.encode import Encoder
from llava_core.engines.transformers.features import FeatureCache
from llava_core.engines.transformers.kv import KVStore
from llava_core.engines.transformers.loop import Event, ModelLoop, Parts
from llava_core.engines.transformers.memory import is_short
from llava_core.engines.transformers.packing import pack_linears
from llava_core.engines.transformers.pictures import Pictures
from llava_core.engines.transformers.probe import check_attention, own_logits, warm_up
from llava_core.engines.transformers.rejoin import rejoin
from llava_core.engines.transformers.sampler import Draw, Sampler
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.speculate import Lookup, may_speculate
from llava_core.engines.transformers.step import Step
from llava_core.engines.transformers.threads import set_threads
from llava_core.errors import BadRequest, ContextOverflow, EngineFailure, LlavaError, Overloaded
from llava_core.images import ImageLoader
from llava_core.types import Chunk, EngineStatus, ModelInfo, Request

log = logging.getLogger(__name__)

_STEP_TOKENS = {"cpu": 384, "mps": 1024, "cuda": 4096}
_GUESS_ROWS = {"cpu": 16, "mps": 16, "cuda": 64}
_ENCODE_BATCH = {"cpu": 2, "mps": 2, "cuda": 8}


def load_transformers_engine(options: EngineOptions) -> TransformersEngine:
    """Load the checkpoint that the options name and start an engine on it. Raises BadCheckpoint."""
    from llava_core.checkpoints.load import load_checkpoint

    if options.model_path is None:
        raise BadRequest("the transformers engine needs a checkpoint; name one with --model-path", param="model_path")
    loaded = load_checkpoint(
        options.model_path,
        base=options.model_base,
        name=options.model_name,
        device=options.device,
        dtype=options.dtype,
        load_4bit=options.load_4bit,
        load_8bit=options.load_8bit,
        conv_template=options.conv_template,
    )
    return TransformersEngine(loaded, limits=options.limits, images=options.images, batch=options.batch)


class TransformersEngine:
    """Packed continuous batching over one loaded checkpoint."""

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        *,
        limits: EngineLimits | None = None,
        images: ImageLimits | None = None,
        batch: BatchLimits | None = None,
        backend: str = "auto",
    ) -> None:
        """`backend` "padded" takes the attention that runs on any device; "auto" the best one for this device."""
        self._loaded = loaded
        self._limits = limits or EngineLimits()
        self._batch = batch or BatchLimits()
        self._pictures = Pictures(ImageLoader(images or ImageLimits()), self._batch.prepared_bytes)
        self._tokenizer = _pipeline_of(loaded)
        model = loaded.model
        model.eval()
        device = model.device
        if device.type == "cpu":
            log.info("the model runs on %d threads", set_threads(self._batch.threads))
            pack_linears(model)
        own = own_logits(model)
        use_ragged_attention(model)
        attention = choose_backend(backend, model, self._batch, context_length=loaded.info.context_length)
        check_attention(model, attention, own)
        warm_up(loaded, attention)
        self._features = FeatureCache(self._batch.feature_bytes)
        self._store = KVStore(
            attention,
            loaded.info.context_length,
            loaded.positions,
            share_between_owners=self._batch.share_between_owners,
            rejoin=lambda prompt, kept: rejoin(prompt, kept, self._decode),
            is_short=is_short if device.type == "cpu" else lambda: False,
        )
        self._vocabulary: int = model.config.get_text_config().vocab_size
        facts = loaded.facts
        forbidden = {*facts.forbidden_ids, *([facts.image_token_id] if facts.image_token_id is not None else [])}
        self._never_guessed = frozenset(forbidden | facts.eos_ids)
        self._grammars = Grammars(loaded.tokenizer, self._vocabulary, facts.eos_ids, forbidden)
        budget = self._batch.step_tokens or _STEP_TOKENS.get(device.type, 1024)
        parts = Parts(
            Step(model, attention),
            self._store,
            Encoder(loaded, self._features, batch=_ENCODE_BATCH.get(device.type, 2)),
            Sampler(sorted(token for token in forbidden if 0 <= token < self._vocabulary), device),
            facts,
            lambda token: self._tokenizer.decode([token], skip_special_tokens=False),
            self._free_memory,
        )
        self._loop = ModelLoop(
            parts, self._limits, budget=budget, guess_rows=_GUESS_ROWS.get(device.type, 16), deliver=self._deliver
        )
        self._pool = ThreadPoolExecutor(self._batch.prepare_workers, thread_name_prefix="prepare")
        self._readers: dict[Sequence, _Reader] = {}
        self._preparing = 0
        self._closed = False
        self._loop.start()

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    def status(self) -> EngineStatus:
        return EngineStatus(self._loop.running, self._loop.waiting + self._preparing, self._limits.max_running)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self._check(request)
        self._preparing += 1
        try:
            sequence = await self._prepare(request)
        finally:
            self._preparing -= 1
        reader = _Reader(asyncio.get_running_loop())
        self._readers[sequence] = reader
        try:
            self._loop.submit(sequence)
            while True:
                chunk = await reader.next()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            del self._readers[sequence]
            if not reader.ended:
                self._loop.cancel(sequence)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._loop.stop, self._batch.stop_timeout_s)
        await self._pictures.aclose()
        self._grammars.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, request: Request) -> None:
        """What can be known before any work is done."""
        if self._closed:
            raise EngineFailure("this engine has been stopped; ask another worker", request_id=request.id)
        waiting = self._loop.waiting + self._preparing
        if waiting >= self._limits.max_waiting:
            raise Overloaded(
                f"{waiting} requests already wait for this model; try again a little later", retry_after=2.0
            )
        sampling = request.sampling
        for param, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            wrong = [token for token in ids if not 0 <= token < self._vocabulary]
            if wrong:
                message = f"{param} names token {wrong[0]}, but this model's tokens go from 0 to {self._vocabulary - 1}"
                raise BadRequest(message, param=param)
        if request.images and not self.info.accepts_images:
            raise BadRequest(
                f"{self.info.name} takes no pictures; remove them or choose another model", param="messages"
            )

    async def _prepare(self, request: Request) -> Sequence:
        grammar, constraint = request.sampling.grammar, None
        if grammar is not None:
            begun = request.messages[-1].text if request.continue_final else ""
            constraint = await self._grammars.constraint(grammar, begun=begun)
        taken = await self._pictures.take(request.images)

        def make() -> Sequence:
            prompt = self._loaded.prompt(request.messages, taken.pictures, continue_final=request.continue_final)
            self._pictures.keep(taken, [placed.image for placed in prompt.images])
            return self._sequence(request, prompt, constraint)

        return await asyncio.get_running_loop().run_in_executor(self._pool, make)

    def _sequence(self, request: Request, prompt: Prompt, constraint: Constraint | None) -> Sequence:
        sampling, facts = request.sampling, self._loaded.facts
        return Sequence(
            request,
            prompt,
            self._room_for_answer(request, prompt),
            Draw(sampling, facts.eos_ids | set(sampling.stop_token_ids), frozenset(prompt.ids), constraint=constraint),
            Detokenizer(
                self._tokenizer,
                (*facts.stop_strings, *sampling.stop),
                before=prompt.ids[-8:] if request.continue_final else (),
            ),
            self._loaded.positions(prompt),
            owner=request.owner,
            lookup=Lookup(self._never_guessed) if self._batch.speculate and may_speculate(sampling) else None,
        )

    def _room_for_answer(self, request: Request, prompt: Prompt) -> int:
        """Tokens the answer may take: as many as asked for, cut to what is left. Raises ContextOverflow."""
        context = min(self.info.context_length, self._store.backend.total_tokens)
        images = sum(placed.image.tokens for placed in prompt.images)
        parts = f"{len(prompt.ids)} tokens" + (f", {images} of them for pictures" if images else "")
        wanted = request.sampling.max_tokens
        if len(prompt.ids) >= context:
            what = "context of this model" if context == self.info.context_length else "memory of this worker"
            raise ContextOverflow(
                f"this chat is {parts} long, but the {what} holds {context} and the answer needs room too; "
                "leave out earlier turns or pictures, or start anew",
                param="messages",
            )
        return min(wanted or context, context - len(prompt.ids), self._limits.max_answer_tokens)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _free_memory(self) -> None:
        self._store.clear()
        self._features.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _deliver(self, events: list[Event]) -> None:
        """Called by the model thread once a step: one wake-up for each event loop that reads."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for sequence, outcome in events:
            reader = self._readers.get(sequence)
            if reader is not None:
                by_loop.setdefault(reader.loop, []).append(lambda reader=reader, outcome=outcome: reader.put(outcome))
        for loop, puts in by_loop.items():
            try:
                loop.call_soon_threadsafe(_run_all, puts)
            except RuntimeError:
                # That event loop is closed: nobody reads any more.
                for sequence, _ in events:
                    if (reader := self._readers.get(sequence)) is not None and reader.loop is loop:
                        sequence.cancelled = True


class _Reader:
    """What one caller has not read yet; text that nobody read is joined, so that it stays small."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended = False
        self._chunk: Chunk | None = None
        self._error: LlavaError | None = None
        self._news = asyncio.Event()

    def put(self, outcome: Chunk | LlavaError) -> None:
        if isinstance(outcome, LlavaError):
            self._error, self.ended = outcome, True
        else:
            self.ended = outcome.finish_reason is not None
            before = self._chunk
            self._chunk = (
                outcome
                if before is None
                else replace(outcome, text=before.text + outcome.text, logprobs=before.logprobs + outcome.logprobs)
            )
        self._news.set()

    async def next(self) -> Chunk:
        while self._chunk is None:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        chunk, self._chunk = self._chunk, None
        return chunk


def _run_all(puts: list[Callable[[], None]]) -> None:
    for put in puts:
        put()


def _pipeline_of(loaded: LoadedCheckpoint) -> Tokenizer:
    backend: Any = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise BadRequest(f"{type(loaded.tokenizer).__name__} has no `tokenizers` pipeline; a tokenizer.json is needed")
    # A copy: transformers switches padding and truncation on its own object.
    return Tokenizer.from_str(backend.to_str())
