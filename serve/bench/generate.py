"""The baseline: a checkpoint served the way the original LLaVA worker does it, through `model.generate`.

Each request is a call of its own, by default one at a time: its pictures are encoded and its whole chat is prefilled
anew on every turn. Text goes out with every token, a little sooner than the original's, which waits for whole words.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from llava_core.config import EngineLimits, ImageLimits
from llava_core.engines.load import EngineOptions
from llava_core.errors import ContextOverflow, EngineFailure, LlavaError, Overloaded
from llava_core.images import ImageLoader
from llava_core.types import Chunk, EngineStatus, ModelInfo, Request, Usage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from llava_core.checkpoints.base import LoadedCheckpoint, Prompt


def load_generate_engine(options: EngineOptions, *, at_once: int = 1) -> GenerateEngine:
    """Load the checkpoint that the options name; slow and blocking. Raises BadCheckpoint."""
    from llava_core.checkpoints.load import load_checkpoint
    from llava_core.engines.transformers.threads import in_passing_thread, set_threads

    loaded = in_passing_thread(
        lambda: load_checkpoint(
            options.model_path or "", name=options.model_name, device=options.device, dtype=options.dtype
        )
    )
    # Every thread of the pool says it for itself.
    start = partial(set_threads, None) if loaded.model.device.type == "cpu" else None
    return GenerateEngine(loaded, limits=options.limits, images=options.images, at_once=at_once, start=start)


class GenerateEngine:
    """`at_once` requests run in threads of their own, as the original's do up to its `--limit-model-concurrency`."""

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        *,
        limits: EngineLimits | None = None,
        images: ImageLimits | None = None,
        at_once: int = 1,
        start: Callable[[], object] | None = None,
    ) -> None:
        self._loaded = loaded
        self._limits = limits or EngineLimits()
        self._images = ImageLoader(images or ImageLimits())
        self._slots = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="generate", initializer=start)
        self._running = self._waiting = 0
        self._forbidden = self._never_said()

    @property
    def model(self) -> PreTrainedModel:
        return self._loaded.model

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    def status(self) -> EngineStatus:
        return EngineStatus(self._running, self._waiting, self._at_once)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        if self._waiting >= self._limits.max_waiting:
            raise Overloaded(f"{self._waiting} requests already wait for this model", retry_after=2.0)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.max_wait_s):
                await self._slots.acquire()
        except TimeoutError as cause:
            raise Overloaded(f"no turn within {self._limits.max_wait_s:g} s", retry_after=5.0) from cause
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            pictures = await self._images.load(request.images)
            loop = asyncio.get_running_loop()
            outcomes: asyncio.Queue[Chunk | LlavaError] = asyncio.Queue()

            def tell(outcome: Chunk | LlavaError) -> None:
                loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

            left = threading.Event()
            work = loop.run_in_executor(self._threads, self._answer, request, pictures, tell, left)
            try:
                while True:
                    outcome = await outcomes.get()
                    if isinstance(outcome, LlavaError):
                        raise outcome
                    yield outcome
                    if outcome.finish_reason is not None:
                        return
            finally:
                left.set()
                await asyncio.shield(work)
        finally:
            self._running -= 1
            self._slots.release()

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._images.aclose()

    def _answer(
        self,
        request: Request,
        pictures: Sequence[Any],
        tell: Callable[[Chunk | LlavaError], None],
        left: threading.Event,
    ) -> None:
        """In a thread of the pool: prompt, pictures, prefill and every token."""
        try:
            prompt = self._loaded.prompt(request.messages, pictures, continue_final=request.continue_final)
            room = self.info.context_length - len(prompt.ids)
            most = min(request.sampling.max_tokens or self._limits.max_answer_tokens, room)
            if most < 1 or (request.sampling.max_tokens or 0) > room:
                raise ContextOverflow(
                    f"this chat of {len(prompt.ids)} tokens and its answer do not fit into "
                    f"{self.info.context_length}; shorten it",
                    param="messages",
                )
            self._run(request, prompt, most, tell, left)
        except LlavaError as error:
            tell(error)
        except Exception as cause:
            error = EngineFailure(f"generate failed: {cause}", request_id=request.id)
            error.__cause__ = cause
            tell(error)

    def _run(
        self,
        request: Request,
        prompt: Prompt,
        most: int,
        tell: Callable[[Chunk | LlavaError], None],
        left: threading.Event,
    ) -> None:
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        from llava_core.engines.transformers.detokenize import Detokenizer

        sampling, facts, model = request.sampling, self._loaded.facts, self._loaded.model
        ending = set() if sampling.ignore_eos else {*facts.eos_ids, *sampling.stop_token_ids}
        never = {*self._forbidden, *(facts.eos_ids if sampling.ignore_eos else ())}
        drawing = sampling.temperature > 1e-5
        settings = GenerationConfig(
            max_new_tokens=most,
            min_new_tokens=sampling.min_tokens or None,
            do_sample=drawing,
            eos_token_id=sorted(ending) or None,
            pad_token_id=min(facts.eos_ids, default=0),
            suppress_tokens=sorted(never) or None,
            repetition_penalty=sampling.repetition_penalty,
            **(
                {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
                if drawing
                else {}
            ),
        )
        backend: Any = self._loaded.tokenizer
        words = Detokenizer(backend.backend_tokenizer, (*facts.stop_strings, *sampling.stop))
        streamer = _Streamer(words, ending, tell)

        def stops(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            return torch.full((ids.shape[0],), left.is_set() or words.stopped, device=ids.device)

        generate: Any = model.generate
        with torch.inference_mode():
            generate(
                **_inputs(self._loaded, prompt),
                generation_config=settings,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([stops]),  # pyright: ignore[reportArgumentType]
            )
        text = words.finish()
        usage = Usage(len(prompt.ids), streamer.count, sum(placed.image.tokens for placed in prompt.images), 0)
        finish = "stop" if streamer.ended or words.stopped else "length"
        tell(Chunk(text, finish, usage))

    def _never_said(self) -> frozenset[int]:
        """Placeholders of pictures, and ids that no token has."""
        vocabulary: int = self._loaded.model.config.get_text_config().vocab_size
        facts = self._loaded.facts
        named = {*facts.forbidden_ids, *([facts.image_token_id] if facts.image_token_id is not None else [])}
        return frozenset(token for token in named if 0 <= token < vocabulary)


class _Streamer:
    """What `generate` hands its tokens to: the prompt first, then one at a time."""

    def __init__(self, words: Any, ending: set[int], tell: Callable[[Chunk | LlavaError], None]) -> None:
        self._words, self._ending, self._tell = words, ending, tell
        self._prompt_seen = self.ended = False
        self.count = 0

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value.reshape(-1)[-1])
        self.count += 1
        if token in self._ending:
            self.ended = True
        elif text := self._words.push(token):
            self._tell(Chunk(text))

    def end(self) -> None:
        """The call returns at once; what is left to say is said there."""


def _inputs(loaded: LoadedCheckpoint, prompt: Prompt) -> dict[str, Any]:
    """The arguments of `generate` for a prompt and its pictures."""
    import torch

    model = loaded.model
    ids = torch.tensor([prompt.ids], device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pictures = [placed.image.inputs for placed in prompt.images]
    for name in pictures[0] if pictures else ():
        tensors = [one[name] for one in pictures]
        if name == "pixel_values" and tensors[0].ndim == 5:
            most = max(tensor.shape[1] for tensor in tensors)
            tensors = [
                torch.cat((tensor, tensor.new_zeros(1, most - tensor.shape[1], *tensor.shape[2:])), dim=1)
                for tensor in tensors
            ]
        joined = torch.cat(tensors).to(model.device)
        inputs[name] = joined.to(model.dtype) if joined.is_floating_point() else joined
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == loaded.facts.image_token_id).int()
    if pictures and model.config.model_type == "llava_onevision":
        inputs["batch_num_images"] = [len(pictures)]
    # Qwen-VL keeps the last call's rotary offset on the model.
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            setattr(module, "rope_deltas", None)  # noqa: B010  a Module's own setter is typed for tensors
    return inputs
