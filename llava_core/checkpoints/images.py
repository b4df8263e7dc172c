"""What a checkpoint's side for pictures does: prepare one on the CPU, encode several on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn

from llava_core.checkpoints.base import PreparedImage, Prompt
from llava_core.checkpoints.seen import Layout

TILES_AT_ONCE = 32


class ImageSide(Protocol):
    """`prepare` is safe from any thread; the others belong to the model's thread."""

    def prepare(self, image: Image.Image, *, alone: bool) -> PreparedImage:
        """`alone`: whether it is the chat's only picture, which changes how some families cut it."""
        ...

    def encode(self, model: Any, images: Sequence[PreparedImage]) -> list[torch.Tensor]: ...

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor | None: ...

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        """Where in the picture its tokens lie; safe from any thread."""
        ...


def image_key(image: Image.Image, preprocessing: str) -> str:
    """Equal for equal pixels, size and preprocessing."""
    digest = hashlib.sha256(f"{preprocessing}|{image.mode}|{image.width}x{image.height}|".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def tile_features(
    inner: Any, pixels: torch.Tensor, *, layer: int, keeps_class_token: bool, at_once: int = TILES_AT_ONCE
) -> torch.Tensor:
    """Projected features of tiles through a LLaVA-like model's tower and projector, some at a time."""
    tower: nn.Module = inner.vision_tower
    weight = next(tower.parameters())
    found: list[torch.Tensor] = []
    for batch in pixels.split(at_once):
        given = batch.to(weight.device, weight.dtype)
        hidden = tower(given, output_hidden_states=True, return_dict=True).hidden_states[layer]
        # (tiles, 1 + patches, width) -> (tiles, patches, width)
        hidden = hidden if keeps_class_token else hidden[:, 1:]
        found.append(inner.multi_modal_projector(hidden))
    return torch.cat(found)


def grouped(images: Sequence[PreparedImage], limit: int) -> Iterator[list[PreparedImage]]:
    """Neighbours whose tensors have one shape and together at most `limit` tiles, for one call of the tower."""
    batch: list[PreparedImage] = []
    tiles = 0
    for image in images:
        size = image.inputs["pixel_values"].shape[0]
        if batch and tiles + size > limit:
            yield batch
            batch, tiles = [], 0
        batch.append(image)
        tiles += size
    if batch:
        yield batch
