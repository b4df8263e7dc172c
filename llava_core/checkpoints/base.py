"""What a loaded checkpoint offers to an engine: prompts as ids, pictures as tensors and as projected features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image

from llava_core.checkpoints.seen import Layout
from llava_core.types import Message, ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedImage:
    """One picture, preprocessed on the CPU and counted, not yet encoded.

    `key` is a hash of pixels, size and preprocessing: equal keys have equal features. `inputs` are the tensors
    the vision tower takes for this one picture (`pixel_values`, `image_sizes`, `image_grid_thw`…).
    """

    key: str
    inputs: Mapping[str, torch.Tensor]
    tokens: int
    """Rows of features, and placeholders in the prompt, that it takes."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the picture."""


@dataclass(frozen=True)
class PlacedImage:
    """A prepared picture and where its placeholders stand: `ids[start : start + image.tokens]`.

    The model's placeholders need not be contiguous in general (Qwen-VL is, LLaVA is); every family we serve
    has them so, and loaders check it.
    """

    start: int
    image: PreparedImage


@dataclass(frozen=True)
class Prompt:
    """A chat ready to prefill: ids with one placeholder id per image feature row. `len(ids)` is the prefill length."""

    ids: tuple[int, ...]
    images: tuple[PlacedImage, ...] = ()
    text: str = ""
    """The rendered prompt, one image mark per picture, for people to read."""


@dataclass(frozen=True)
class TokenFacts:
    """What ends an answer and what must never be sampled."""

    eos_ids: frozenset[int]
    image_token_id: int | None
    stop_strings: tuple[str, ...] = ()
    """Separators of the template that end an answer though they are no single token (`###`)."""
    forbidden_ids: frozenset[int] = field(default_factory=frozenset[int])


class LoadedCheckpoint(Protocol):
    """A checkpoint in memory. `prompt` is safe to call from any thread; `encode` and the model belong to the
    engine's one model thread."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: TokenFacts
    info: ModelInfo

    def prompt(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image | PreparedImage],
        *,
        continue_final: bool = False,
    ) -> Prompt:
        """Render, tokenise and preprocess. `images` are decoded RGB pictures in the order of the messages' image
        parts; a chat that comes again with as many may give back what was prepared for it. User text that looks like
        a special token stays text. Raises BadImage, ContextOverflow is the engine's to raise."""
        ...

    def encode(self, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        """Projected features of each picture, `(tokens, hidden)` on the model's device and dtype. Where further
        features are added after the first layers (Qwen3-VL's DeepStack), their columns follow: `(tokens, hidden * (1
        + layers))`."""
        ...

    def layout(self, image: PreparedImage) -> Layout:
        """Where in the picture its tokens lie. Safe to call from any thread."""
        ...

    def positions(self, prompt: Prompt) -> torch.Tensor | None:
        """Position ids `(3, length)` where the family needs more than a count (Qwen-VL); None elsewhere."""
        ...
