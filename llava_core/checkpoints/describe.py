"""What a checkpoint is, told without loading its weights: parts, sizes, prompt, context, memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava_core.checkpoints import memory
from llava_core.checkpoints.images import ImageSide
from llava_core.checkpoints.memory import KvShape, Part
from llava_core.checkpoints.recognise import KIND_WORDS, Recognised, recognise
from llava_core.checkpoints.tokens import NOTE_KEY, context_length

SAMPLE_SIZES = ((336, 336), (640, 480), (1280, 720))
BITS = (16, 8, 4)


@dataclass(frozen=True)
class Description:
    """A checkpoint in facts. `image_tokens` maps (width, height) to the tokens of such a picture."""

    folder: str
    kind: str
    model_type: str
    files: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    vision: str
    template: str
    template_reason: str
    context_length: int
    image_tokens: Mapping[tuple[int, int], int]
    kv: KvShape
    base: str = ""
    note: str = ""

    @property
    def weights(self) -> int:
        return sum(part.weights for part in self.parts)

    def weight_bytes(self, bits: int) -> int:
        return memory.weight_bytes(self.parts, bits)

    @property
    def kv_bytes(self) -> int:
        """One chat that fills the context, in 16 bits."""
        return self.context_length * self.kv.bytes_per_token()


def describe(path: str | os.PathLike[str], *, base: str | None = None, conv_template: str | None = None) -> Description:
    """Look at a checkpoint as loading it would. Raises BadCheckpoint for all that loading would."""
    found = recognise(path, base=base)
    return _hub(found, conv_template) if found.kind in ("hub", "text") else _original(found, conv_template)


def _original(found: Recognised, conv_template: str | None) -> Description:
    from llava_core.checkpoints.original import read_original

    parts = read_original(found, conv_template=conv_template)
    config = parts.config
    way = {"square": "middle cut out", "pad": "padded to a square", "anyres": "any-res tiles"}[config.aspect]
    return _description(
        found,
        parts.empty_model(),
        vision=f"{config.vision.name}, {config.vision.image_size} pixels, {way}",
        template=parts.template.name,
        reason=parts.template_reason,
        context=parts.context_length,
        side=parts.vision,
        text=config.text,
    )


def _hub(found: Recognised, conv_template: str | None) -> Description:
    from llava_core.checkpoints.hub import empty_model, read_side

    side = read_side(found, conv_template)
    config: Any = side.config
    vision = "none"
    if side.vision is not None:
        tower = config.vision_config
        size = getattr(tower, "image_size", None)
        vision = f"{tower.model_type}, {f'{size} pixels' if size else 'any size'}"
    return _description(
        found,
        empty_model(config, text_only=found.kind == "text"),
        vision=vision,
        template=side.template,
        reason=side.reason,
        context=context_length(config.get_text_config(), found.config),
        side=side.vision,
        text=config.get_text_config(),
    )


def _description(
    found: Recognised,
    model: Any,
    *,
    vision: str,
    template: str,
    reason: str,
    context: int,
    side: ImageSide | None,
    text: Any,
) -> Description:
    tokens = {size: side.prepare(Image.new("RGB", size), alone=True).tokens for size in SAMPLE_SIZES} if side else {}
    files = sorted(file for file in found.folder.iterdir() if file.suffix in (".bin", ".safetensors"))
    return Description(
        folder=str(found.folder),
        kind=KIND_WORDS[found.kind],
        model_type=found.model_type,
        files=tuple((file.name, file.stat().st_size) for file in files),
        parts=split_parts(model),
        vision=vision,
        template=template,
        template_reason=reason,
        context_length=context,
        image_tokens=tokens,
        kv=memory.kv_shape(text),
        base=str(found.base or "") if found.kind in ("projector", "lora") else "",
        note=str(found.config.get(NOTE_KEY) or ""),
    )


def split_parts(model: Any) -> tuple[Part, ...]:
    """A model's weights by what they are for; only matrices of the language model's layers quantise."""
    counts: dict[tuple[str, bool], int] = {}
    for name, weight in model.named_parameters():
        part = _part(name)
        key = part, part == "language model" and weight.ndim == 2
        counts[key] = counts.get(key, 0) + weight.numel()
    order = ("vision tower", "projector", "token embedding", "language model", "output")
    return tuple(
        Part(name, counts[name, quantises], quantises)
        for name in order
        for quantises in (True, False)
        if counts.get((name, quantises))
    )


def _part(name: str) -> str:
    if "multi_modal_projector" in name or "image_newline" in name or ".merger" in name or "deepstack_merger" in name:
        return "projector"
    if "vision_tower" in name or ".visual." in name:
        return "vision tower"
    if "embed_tokens" in name:
        return "token embedding"
    return "output" if name.startswith("lm_head") else "language model"
