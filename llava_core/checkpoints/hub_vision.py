"""Pictures of checkpoints in transformers' own format: each family's processor settings, counts and features."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava_core.checkpoints.anyres import Size, unpadded
from llava_core.checkpoints.base import PreparedImage, Prompt
from llava_core.checkpoints.images import TILES_AT_ONCE, grouped, image_key, tile_features
from llava_core.checkpoints.seen import (
    Layout,
    any_res,
    kept_of,
    one_tile,
    seen_by,
    stretched_tiles,
    tile_by_tile,
    whole,
)
from llava_core.errors import BadCheckpoint
from llava_core.inspection import Grid, Tile

Tensors = dict[str, torch.Tensor]


class _HubVision:
    """What the families share: the checkpoint's image processor, run on one picture at a time.

    Token counts come from the model's config: older processors lack `patch_size` and its like.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.config = config
        settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
        self._preprocessing = f"{config.model_type}|{settings}"

    def prepare(self, image: Image.Image, *, alone: bool) -> PreparedImage:
        rgb = image.convert("RGB")
        inputs, tokens = self._inputs(rgb, alone)
        return PreparedImage(image_key(rgb, self._key(alone)), inputs, tokens, rgb.size)

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor | None:
        del model, prompt
        return None

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        raise NotImplementedError

    def _key(self, alone: bool) -> str:
        del alone
        return self._preprocessing

    def _inputs(self, image: Image.Image, alone: bool) -> tuple[Tensors, int]:
        raise NotImplementedError

    def _processed(self, images: Any, **settings: Any) -> Any:
        return self.processor(images=images, return_tensors="pt", **settings)


class LlavaVision(_HubVision):
    """LLaVA-1.5: one tile of fixed size."""

    def _inputs(self, image: Image.Image, alone: bool) -> tuple[Tensors, int]:
        pixels = self._processed(image)["pixel_values"]
        return {"pixel_values": pixels}, tile_tokens(self.config, pixels.shape[-2], pixels.shape[-1])

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        height, width = image.inputs["pixel_values"].shape[-2:]
        box = seen_by(self.processor, image.size)
        vision = self.config.vision_config
        if vision.model_type == "llava_seeing_tower":
            from llava_core.builtin.spots import spots

            tile = Tile("whole", box, width, height, image.tokens)
            return Layout(image.size, (tile,), spots=spots(model, image.inputs["pixel_values"], box))
        rows = (height // getattr(vision, "patch_size", height)) * (width // getattr(vision, "patch_size", width))
        return one_tile(image.size, box, (width, height), image.tokens, before=max(0, image.tokens - rows))

    def encode(self, model: Any, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for batch in grouped(images, TILES_AT_ONCE):
            pixels = torch.cat([image.inputs["pixel_values"] for image in batch])
            found += model.get_image_features(_moved(model, pixels), return_dict=True).pooler_output
        return found


class NextVision(_HubVision):
    """LLaVA-NeXT and OneVision: any-res tiles."""

    # Of several pictures, OneVision was trained to see each as one tile.
    _tiles_many = True

    def _inputs(self, image: Image.Image, alone: bool) -> tuple[Tensors, int]:
        tiled = alone or self._tiles_many
        done = self._processed(image if tiled else [[image, image]])
        inputs = {"pixel_values": done["pixel_values"][0], "image_sizes": done["image_sizes"][:1]}
        return inputs, self.count(image.size, tiled=tiled)

    def count(self, size: Size, *, tiled: bool = True) -> int:
        """Tokens of a picture of that width and height; `tiled` or squeezed into one tile."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        whole = tile_tokens(self.config, vision.image_size, vision.image_size)
        if not tiled:
            return whole + 1
        height, width = _best(size, self.config.image_grid_pinpoints)
        rows, columns = side * (height // vision.image_size), side * (width // vision.image_size)
        kept = unpadded(size, rows, columns, digits=7)
        rows, columns = self._shrunk(kept.rows, kept.columns, side)
        return whole + rows * (columns + 1)

    def encode(self, model: Any, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for batch in grouped(images, TILES_AT_ONCE):
            tiled = [image for image in batch if self._is_tiled(image)]
            if tiled:
                pixels = torch.cat([image.inputs["pixel_values"] for image in tiled])
                sizes = torch.cat([image.inputs["image_sizes"] for image in tiled])
                rows = model.get_image_features(_moved(model, pixels), sizes, return_dict=True).pooler_output
                found |= {id(image): row for image, row in zip(tiled, rows, strict=True)}
            found |= {id(image): self._one_tile(model, image) for image in batch if not self._is_tiled(image)}
        return [found[id(image)] for image in images]

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        vision, size = self.config.vision_config, image.size
        tile, side = int(vision.image_size), vision.image_size // vision.patch_size
        if not self._is_tiled(image):
            return one_tile(size, whole(size), (tile, tile), image.tokens, before=image.tokens - 1 - side**2, last=1)
        height, width = _best(size, self.config.image_grid_pinpoints)
        kept = kept_of(size, (width, height), tile, side, digits=7)
        shrunk = self._shrunk(kept.rows, kept.columns, side)
        base = tile_tokens(self.config, tile, tile)
        return any_res(size, (width, height), tile=tile, side=side, kept=kept, shrunk=shrunk, whole_tokens=base)

    def _is_tiled(self, image: PreparedImage) -> bool:
        return image.inputs["pixel_values"].shape[0] > 1

    def _one_tile(self, model: Any, image: PreparedImage) -> torch.Tensor:
        rows = tile_features(
            model.model,
            image.inputs["pixel_values"],
            layer=self.config.vision_feature_layer,
            keeps_class_token=self.config.vision_feature_select_strategy != "default",
        )[0]
        return torch.cat((rows, model.model.image_newline[None].to(rows)))

    def _shrunk(self, rows: int, columns: int, side: int) -> tuple[int, int]:
        del side
        return rows, columns


class OnevisionVision(NextVision):
    """LLaVA-OneVision: large grids are shrunk to a limit; one tile each where there are several pictures."""

    _tiles_many = False

    def _key(self, alone: bool) -> str:
        return f"{self._preprocessing}|{'tiles' if alone else 'one tile'}"

    def _shrunk(self, rows: int, columns: int, side: int) -> tuple[int, int]:
        most = int(str(self.config.vision_aspect_ratio).removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


class InternVision(_HubVision):
    """InternVL: tiles of one length each, chosen by aspect ratio."""

    def _inputs(self, image: Image.Image, alone: bool) -> tuple[Tensors, int]:
        pixels = self._processed(image, crop_to_patches=True)["pixel_values"]
        return {"pixel_values": pixels}, pixels.shape[0] * int(self.config.image_seq_length)

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

        size, pixels = image.size, image.inputs["pixel_values"]
        height, width = pixels.shape[-2:]
        least, most = self.processor.min_patches, self.processor.max_patches
        across, down = get_optimal_tiled_canvas((size[1], size[0]), (height, width), least, most)
        boxes = stretched_tiles(size, across, down)
        if len(pixels) == len(boxes) + 1:  # the whole picture stands behind its parts
            boxes.append(whole(size))
        return tile_by_tile(size, boxes, width, int(self.config.image_seq_length))

    def encode(self, model: Any, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for batch in grouped(images, TILES_AT_ONCE):
            pixels = torch.cat([image.inputs["pixel_values"] for image in batch])
            tiles = model.get_image_features(_moved(model, pixels), return_dict=True).pooler_output
            each = tiles.split([len(image.inputs["pixel_values"]) for image in batch])
            found += [part.flatten(0, 1) for part in each]
        return found


class QwenVision(_HubVision):
    """Qwen-VL: one grid of patches of the picture's own shape; positions in three dimensions."""

    def _inputs(self, image: Image.Image, alone: bool) -> tuple[Tensors, int]:
        done = self._processed(image)
        merged = int(self.config.vision_config.spatial_merge_size) ** 2
        inputs = {"pixel_values": done["pixel_values"], "image_grid_thw": done["image_grid_thw"]}
        return inputs, int(done["image_grid_thw"].prod()) // merged

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        size, box, vision = image.size, whole(image.size), self.config.vision_config
        merge = int(vision.spatial_merge_size)
        _, down, across = (int(count) for count in image.inputs["image_grid_thw"][0])
        tile = Tile("whole", box, across * vision.patch_size, down * vision.patch_size, image.tokens)
        grid = Grid(0, down // merge, across // merge, across // merge, box)
        return Layout(size, (tile,), (grid,))

    def encode(self, model: Any, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for batch in grouped(images, 4096):
            pixels = torch.cat([image.inputs["pixel_values"] for image in batch])
            grid = torch.cat([image.inputs["image_grid_thw"] for image in batch]).to(model.device)
            done = model.get_image_features(_moved(model, pixels), grid, return_dict=True)
            deep = getattr(done, "deepstack_features", None) or []
            found += [torch.cat(rows, dim=-1) for rows in zip(done.pooler_output, *deep, strict=True)]
        return found

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor | None:
        if not prompt.images:
            return torch.arange(len(prompt.ids)).expand(3, -1)
        kinds = torch.zeros(1, len(prompt.ids), dtype=torch.int32)
        for placed in prompt.images:
            kinds[0, placed.start : placed.start + placed.image.tokens] = 1
        grid = torch.cat([placed.image.inputs["image_grid_thw"] for placed in prompt.images])
        positions, _ = model.model.get_rope_index(torch.tensor([prompt.ids]), kinds, image_grid_thw=grid)
        return positions[:, 0]


@dataclass(frozen=True)
class Family:
    """How a model type of transformers is served. `wrap` stands around a picture where its processor adds it."""

    vision: Callable[[Any, Any], _HubVision]
    wrap: tuple[str, str] = ("", "")


FAMILIES: dict[str, Family] = {
    "llava": Family(LlavaVision),
    "llava_next": Family(NextVision),
    "llava_onevision": Family(OnevisionVision),
    "internvl": Family(InternVision, ("<img>", "</img>")),
    "qwen2_vl": Family(QwenVision),
    "qwen2_5_vl": Family(QwenVision),
    "qwen3_vl": Family(QwenVision),
}

# Rows that a tower gives before those of its patches: a class token's, and registers'.
_TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1}


def load_vision(folder: Path, config: Any) -> Any:
    """The `ImageSide` of a checkpoint. BadCheckpoint where its family or tower is not known, or a file is missing."""
    from transformers import AutoImageProcessor

    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BadCheckpoint(
            f"{folder.name!r} is a {config.model_type!r} model, which is not served here; known are "
            f"{', '.join(FAMILIES)} and text-only causal language models"
        )
    tower = str(config.vision_config.model_type)
    if config.model_type in ("llava_next", "llava_onevision") and tower not in _TOWERS:
        raise BadCheckpoint(
            f"{folder.name!r} has a {tower!r} vision tower, whose image tokens are laid out otherwise; of LLaVA models "
            f"that cut pictures into tiles, those with one of {', '.join(_TOWERS)} are served"
        )
    try:
        # On PIL whatever else is installed, so that one picture gives the same numbers everywhere.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except Exception as cause:
        raise BadCheckpoint(
            f"{folder.name!r} has no usable image processor ({cause}); fetch its preprocessor_config.json"
        ) from cause
    return family.vision(processor, config)


def tile_tokens(config: Any, height: int, width: int) -> int:
    """Features of one tile of that many pixels, as the tower and the selection strategy give them."""
    vision = config.vision_config
    before = _TOWERS.get(vision.model_type)
    if before is None:  # of a tower that is not known here, its checkpoint says it
        return int(config.image_seq_length)
    dropped = config.vision_feature_select_strategy == "default"
    return (height // vision.patch_size) * (width // vision.patch_size) + before - dropped


def _best(size: Size, pinpoints: Any) -> tuple[int, int]:
    from transformers.image_processing_utils import select_best_resolution

    return select_best_resolution((size[1], size[0]), pinpoints)


def _moved(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    weight = next(_tower(model).parameters())
    return pixels.to(weight.device, weight.dtype)


def _tower(model: Any) -> Any:
    return getattr(model.model, "vision_tower", None) or model.model.visual
