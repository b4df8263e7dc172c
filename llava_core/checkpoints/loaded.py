"""A checkpoint in memory, ready for an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava_core.checkpoints.base import PlacedImage, PreparedImage, Prompt, TokenFacts
from llava_core.checkpoints.images import ImageSide
from llava_core.checkpoints.prompting import Prompter
from llava_core.checkpoints.seen import Layout
from llava_core.errors import BadImage, BadRequest, LlavaError
from llava_core.types import Message, ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Checkpoint:
    """The `LoadedCheckpoint` of every family: what differs between them stands in `vision` and `prompter`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: TokenFacts
    info: ModelInfo
    prompter: Prompter
    vision: ImageSide | None

    def prompt(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image | PreparedImage],
        *,
        continue_final: bool = False,
    ) -> Prompt:
        asked = sum(len(message.images) for message in messages)
        if asked != len(images):
            raise BadRequest(f"the messages name {asked} pictures, but {len(images)} were given", param="messages")
        prepared = self._prepare(images)
        lengths = [image.tokens for image in prepared]
        done = self.prompter.tokenize(messages, lengths, continue_final=continue_final)
        placed = tuple(PlacedImage(start, image) for start, image in zip(done.starts, prepared, strict=True))
        return Prompt(done.ids, placed, done.text)

    def encode(self, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        if self.vision is None or not images:
            return []
        with torch.inference_mode():
            features = self.vision.encode(self.model, images)
        for image, rows in zip(images, features, strict=True):
            if rows.shape[0] != image.tokens:
                raise AssertionError(f"{rows.shape[0]} feature rows for {image.tokens} placeholders")
        return features

    def positions(self, prompt: Prompt) -> torch.Tensor | None:
        return self.vision.positions(self.model, prompt) if self.vision else None

    def layout(self, image: PreparedImage) -> Layout:
        assert self.vision is not None, "a model without a vision side prepares no pictures"
        with torch.inference_mode():
            return self.vision.layout(self.model, image)

    def _prepare(self, images: Sequence[Image.Image | PreparedImage]) -> list[PreparedImage]:
        if images and self.vision is None:
            raise BadRequest(f"{self.info.name!r} reads text only; remove the pictures", param="messages")
        assert self.vision is not None or not images
        prepared: list[PreparedImage] = []
        for number, image in enumerate(images, 1):
            if isinstance(image, PreparedImage):
                prepared.append(image)
                continue
            try:
                assert self.vision is not None
                prepared.append(self.vision.prepare(image, alone=len(images) == 1))
            except LlavaError:
                raise
            except Exception as cause:
                raise BadImage(
                    f"picture {number} ({image.width}x{image.height}) cannot be prepared for this model: {cause}; "
                    "send it in another size or shape",
                    param="messages",
                ) from cause
        return prepared
