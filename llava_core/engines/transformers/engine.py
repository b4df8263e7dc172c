"""The face of the engine on the event loop: checks and prepares a request, hands it to the model thread, streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer

from llava_core.checkpoints.base import LoadedCheckpoint, Prompt
from llava_core.config import BatchLimits, EngineLimits, ImageLimits
from llava_core.engines.load import EngineOptions
from llava_core.engines.transformers.attention import AttentionBackend, use_ragged_attention
from llava_core.engines.transformers.backends import choose_backend, in_a_sentence, running_at_once
from llava_core.engines.transformers.catch_up import catch_up
from llava_core.engines.transformers.constrain import Constraint, Grammars
from llava_core.engines.transformers.detokenize import Detokenizer, text_of_token
from llava_core.engines.transformers.encode import Encoder
from llava_core.engines.transformers.features import FeatureCache
from llava_core.engines.transformers.graphs import CudaRecorder, GraphedStep, SingleTokens
from llava_core.engines.transformers.inspector import Inspector, seen_prompt
from llava_core.engines.transformers.kv import KVStore
from llava_core.engines.transformers.loop import Event, ModelLoop, Parts
from llava_core.engines.transformers.memory import is_short
from llava_core.engines.transformers.native.take_over import take_over
from llava_core.engines.transformers.pace import Pace
from llava_core.engines.transformers.packing import pack_linears
from llava_core.engines.transformers.pictures import Pictures
from llava_core.engines.transformers.pieces import pause_between_operations
from llava_core.engines.transformers.probe import check_attention, own_logits, warm_up
from llava_core.engines.transformers.rejoin import rejoin
from llava_core.engines.transformers.sampler import Draw, Sampler
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.speculate import Lookup, may_speculate
from llava_core.engines.transformers.step import Runs, Step
from llava_core.engines.transformers.threads import compute_alone, in_passing_thread, set_threads
from llava_core.engines.transformers.watch import Watch
from llava_core.errors import BadRequest, ContextOverflow, EngineFailure, LlavaError, Overloaded
from llava_core.images import ImageLoader
from llava_core.inspection import SeenAttention, SeenPrompt
from llava_core.types import Chunk, EngineMemory, EngineStatus, ModelInfo, Request

log = logging.getLogger(__name__)

_STEP_TOKENS = {"cpu": 384, "mps": 1024, "cuda": 4096}
_GUESS_ROWS = {"cpu": 16, "mps": 16, "cuda": 64}
_ENCODE_BATCH = {"cpu": 2, "mps": 2, "cuda": 8}


def load_transformers_engine(options: EngineOptions) -> TransformersEngine:
    """Load the checkpoint that the options name and start an engine on it. Raises BadCheckpoint."""
    from llava_core.checkpoints.load import load_checkpoint

    if options.model_path is None:
        raise BadRequest("the transformers engine needs a checkpoint; name one with --model-path", param="model_path")
    path = options.model_path

    def load() -> TransformersEngine:
        loaded = load_checkpoint(
            path,
            base=options.model_base,
            name=options.model_name,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            conv_template=options.conv_template,
        )
        return TransformersEngine(loaded, limits=options.limits, images=options.images, batch=options.batch)

    return in_passing_thread(load)


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
        self._info = replace(loaded.info, inspects=True)
        self._limits = limits or EngineLimits()
        self._batch = batch or BatchLimits()
        shares = self._batch.share_between_owners
        loader = ImageLoader(images or ImageLimits())
        self._pictures = Pictures(loader, self._batch.prepared_bytes, share_between_owners=shares)
        self._tokenizer = _pipeline_of(loaded)
        model = loaded.model
        model.eval()
        device = model.device
        threads = None
        if device.type == "cpu":
            threads = set_threads(self._batch.threads)
        own = own_logits(model)
        taken = take_over(model, "off" if backend == "padded" else self._batch.kernel)
        if device.type == "cpu":
            pack_linears(model)
        use_ragged_attention(model)
        if loaded.info.accepts_images:
            pause_between_operations(model)
        attention = choose_backend(
            backend, model, self._batch, context_length=loaded.info.context_length, by_kernel=taken is not None
        )
        step = Step(model, attention) if taken is None else taken.step()
        check_attention(model, attention, own, step)
        warm_up(loaded, attention, step)
        self._features = FeatureCache(self._batch.feature_bytes)
        self._store = KVStore(
            attention,
            loaded.info.context_length,
            loaded.positions,
            share_between_owners=shares,
            rejoin=lambda prompt, kept: rejoin(prompt, kept, self._decode),
            is_short=is_short if device.type == "cpu" else lambda: False,
        )
        self._speculates = self._batch.speculate != "off"
        self._vocabulary: int = model.config.get_text_config().vocab_size
        facts = loaded.facts
        forbidden = {*facts.forbidden_ids, *([facts.image_token_id] if facts.image_token_id is not None else [])}
        self._never_guessed = frozenset(forbidden | facts.eos_ids)
        self._grammars = Grammars(loaded.tokenizer, self._vocabulary, facts.eos_ids, forbidden)
        budget = self._batch.step_tokens or _STEP_TOKENS.get(device.type, 1024)
        context = loaded.info.context_length
        self._max_running = self._limits.max_running or running_at_once(device.type, attention.total_tokens, context)
        log.info("%s", in_a_sentence(loaded.info, attention, self._max_running, by_kernel=taken is not None))
        parts = Parts(
            self._runs(step, attention),
            self._store,
            Encoder(loaded, self._features, batch=_ENCODE_BATCH.get(device.type, 2), share_between_owners=shares),
            Sampler(sorted(token for token in forbidden if 0 <= token < self._vocabulary), device),
            facts,
            lambda token: text_of_token(self._tokenizer, token),
            self._free_memory,
        )
        self._loop = ModelLoop(
            parts,
            self._limits,
            max_running=self._max_running,
            budget=budget,
            # Whoever names a size gets that size.
            pace=None if self._batch.step_tokens else Pace(budget),
            guess_rows=budget if self._batch.speculate == "on" else _GUESS_ROWS.get(device.type, 16),
            threads=threads,
            deliver=self._deliver,
        )
        self._pool = ThreadPoolExecutor(
            self._batch.prepare_workers, thread_name_prefix="prepare", initializer=compute_alone
        )
        self._inspector = Inspector(loaded)
        self._readers: dict[Sequence, _Reader] = {}
        self._preparing = 0
        self._closed = False
        self._loop.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    def status(self) -> EngineStatus:
        waiting = self._loop.waiting + self._preparing
        return EngineStatus(self._loop.running, waiting, self._max_running, self._limits.max_waiting)

    def memory(self) -> EngineMemory:
        device = self._loaded.model.device
        free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
        store = self._store
        return EngineMemory(store.running_tokens, store.parked_tokens, store.backend.total_tokens, total - free, total)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self._check(request)
        self._preparing += 1
        try:
            sequence = await self._prepare(request)
        finally:
            self._preparing -= 1
        async with aclosing(self._run(sequence)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def look(self, request: Request) -> SeenPrompt:
        """The chat as the model reads it, and the tokens of the answer that was begun."""
        self._check(request)
        taken = await self._pictures.take(request.images, request.owner)
        answer = request.begun.token_ids if request.begun else ()

        def make() -> SeenPrompt:
            prompt = self._loaded.prompt(request.messages, taken.pictures, continue_final=request.continue_final)
            self._pictures.keep(taken, [placed.image for placed in prompt.images])
            return seen_prompt(self._loaded, self._tokenizer, prompt, answer)

        return await asyncio.get_running_loop().run_in_executor(self._pool, make)

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention:
        """Where in the pictures it looked as it chose tokens `first` to `first + count` of the begun answer. Computes
        what stands behind the first picture again, in a request of its own."""
        self._check(request)
        async with self._inspector.taking_turns():
            watched, request = self._inspector.watch(request, first, count)
            sequence = await self._prepare(request, watched)
            async with aclosing(self._run(sequence)) as chunks:
                async for _ in chunks:
                    pass
            seen = partial(watched.seen, sequence, first, count)
            return await asyncio.get_running_loop().run_in_executor(self._pool, seen)

    async def _run(self, sequence: Sequence) -> AsyncGenerator[Chunk]:
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

    def _runs(self, step: Runs, attention: AttentionBackend) -> Runs:
        """What computes the passes: on CUDA with graphs for decode steps."""
        model = self._loaded.model
        if model.device.type != "cuda" or self._batch.graphs_s <= 0 or not isinstance(attention, SingleTokens):
            return step
        graphed = GraphedStep(
            step,
            model,
            attention,
            CudaRecorder(model.device),
            most_rows=self._max_running,
            three_positions=self._loaded.positions(Prompt((0, 1))) is not None,
        )
        graphed.record_all(self._batch.graphs_s)
        return graphed

    def _check(self, request: Request) -> None:
        """What can be known before any work is done."""
        if self._closed:
            raise EngineFailure("this engine has been stopped; ask another worker", request_id=request.id)
        busy = self.status()
        if busy.full:
            raise Overloaded(
                f"{busy.waiting} requests already wait for this model; try again a little later", retry_after=2.0
            )
        sampling = request.sampling
        begun = request.begun.token_ids if request.begun else ()
        for param, ids in (
            ("logit_bias", sampling.logit_bias),
            ("stop_token_ids", sampling.stop_token_ids),
            ("continue_token_ids", begun),
        ):
            wrong = [token for token in ids if not 0 <= token < self._vocabulary]
            if wrong:
                message = f"{param} names token {wrong[0]}, but this model's tokens go from 0 to {self._vocabulary - 1}"
                raise BadRequest(message, param=param)
        if request.images and not self.info.accepts_images:
            raise BadRequest(
                f"{self.info.name} takes no pictures; remove them or choose another model", param="messages"
            )

    async def _prepare(self, request: Request, watch: Watch | None = None) -> Sequence:
        grammar, constraint = request.sampling.grammar, None
        if grammar is not None:
            begun = request.messages[-1].text if request.continue_final else ""
            constraint = await self._grammars.constraint(grammar, begun=begun)
        taken = await self._pictures.take(request.images, request.owner)

        def make() -> Sequence:
            prompt = self._loaded.prompt(request.messages, taken.pictures, continue_final=request.continue_final)
            self._pictures.keep(taken, [placed.image for placed in prompt.images])
            return self._sequence(request, prompt, constraint, watch)

        return await asyncio.get_running_loop().run_in_executor(self._pool, make)

    def _sequence(
        self, request: Request, prompt: Prompt, constraint: Constraint | None, watch: Watch | None
    ) -> Sequence:
        sampling, facts = request.sampling, self._loaded.facts
        room = self._room_for_answer(request, prompt)
        draw = Draw(
            sampling, facts.eos_ids | set(sampling.stop_token_ids), frozenset(prompt.ids), constraint=constraint
        )
        stops = (*facts.stop_strings, *sampling.stop)
        before = prompt.ids[-8:] if request.continue_final else ()
        detokenizer = Detokenizer(self._tokenizer, stops, before=before)
        if watch is not None and watch.answer > room:
            raise ContextOverflow("the answer does not fit behind this chat", param="continue_token_ids")
        if request.begun is not None and watch is None:
            catch_up(request.begun, draw, detokenizer, never=self._never_guessed, room=room)
        return Sequence(
            request,
            prompt,
            room,
            draw,
            detokenizer,
            self._loaded.positions(prompt),
            owner=request.owner,
            begun=request.begun.token_ids if request.begun else (),
            lookup=Lookup(self._never_guessed) if self._speculates and may_speculate(sampling) else None,
            watch=watch,
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
                else replace(
                    outcome,
                    text=before.text + outcome.text,
                    logprobs=before.logprobs + outcome.logprobs,
                    token_ids=before.token_ids + outcome.token_ids,
                )
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
