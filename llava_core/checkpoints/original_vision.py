"""Pictures as the original LLaVA code prepares and packs them: square, padded, or any-res tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from llava_core.checkpoints import anyres, files
from llava_core.checkpoints.base import PreparedImage, Prompt
from llava_core.checkpoints.images import image_key, tile_features
from llava_core.checkpoints.original_config import OriginalConfig, VisionPart
from llava_core.checkpoints.seen import (
    Layout,
    any_res,
    canvas_tiles,
    cropped,
    kept_of,
    one_tile,
    squared,
    tile_by_tile,
    whole,
)
from llava_core.errors import BadCheckpoint


class OriginalVision:
    """The `ImageSide` of original-format checkpoints."""

    def __init__(self, config: OriginalConfig, processor: Any) -> None:
        self.config = config
        self.processor = processor
        self._background = tuple(int(value * 255) for value in processor.image_mean)
        settings = json.dumps([config.aspect, config.merge, config.resolutions, processor.to_dict()], default=str)
        self._preprocessing = f"original|{settings}"

    def prepare(self, image: Image.Image, *, alone: bool) -> PreparedImage:
        del alone
        rgb = image.convert("RGB")
        return PreparedImage(
            key=image_key(rgb, self._preprocessing),
            inputs={
                "pixel_values": torch.cat([self._pixels(tile) for tile in self._tiles(rgb)]),
                "image_sizes": torch.tensor([[rgb.height, rgb.width]]),
            },
            tokens=self.count((rgb.width, rgb.height)),
            size=rgb.size,
        )

    def count(self, size: anyres.Size) -> int:
        """Tokens of a picture of that width and height."""
        config = self.config
        if config.aspect != "anyres":
            return config.tokens_per_tile
        tiles = anyres.tile_count(size, config.grid)
        return (
            anyres.token_count(size, config.grid) if config.merge == "spatial_unpad" else tiles * config.tokens_per_tile
        )

    def encode(self, model: Any, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        tiles = [image.inputs["pixel_values"] for image in images]
        features = tile_features(
            model.model,
            torch.cat(tiles),
            layer=self.config.select_layer,
            keeps_class_token=self.config.keeps_class_token,
        )
        each = features.split([len(tile) for tile in tiles])
        return [self._packed(model, part, image) for part, image in zip(each, images, strict=True)]

    def positions(self, model: Any, prompt: Prompt) -> None:
        del model, prompt

    def layout(self, model: Any, image: PreparedImage) -> Layout:
        del model
        size, grid, each = image.size, self.config.grid, self.config.tokens_per_tile
        class_token = int(self.config.keeps_class_token)
        if self.config.aspect != "anyres":
            middle = cropped(size, grid.tile, (grid.tile, grid.tile))
            box = squared(size) if self.config.aspect == "pad" else middle
            return one_tile(size, box, (grid.tile, grid.tile), image.tokens, before=class_token)
        target = anyres.best_resolution(size, grid.resolutions)
        if self.config.merge == "flat":
            boxes = [whole(size), *canvas_tiles(size, target, grid.tile)]
            return tile_by_tile(size, boxes, grid.tile, each, before=class_token)
        unpads = self.config.merge == "spatial_unpad"
        kept = kept_of(size, target, grid.tile, grid.side) if unpads else None
        return any_res(size, target, tile=grid.tile, side=grid.side, kept=kept, newline=unpads)

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        if self.config.aspect == "anyres":
            return cut(image, self.config.grid)
        if self.config.aspect == "pad":
            image = padded(image, self._background)
        return [resized(image, _shortest_side(image.size, self.config.grid.tile))]

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, side, side)"""
        return self.processor(images=image, return_tensors="pt")["pixel_values"]

    def _packed(self, model: Any, features: torch.Tensor, image: PreparedImage) -> torch.Tensor:
        """(tiles, patches, hidden) -> (tokens, hidden)"""
        if self.config.aspect != "anyres" or self.config.merge == "flat":
            return features.flatten(0, 1)
        height, width = (int(side) for side in image.inputs["image_sizes"][0])
        grid = self.config.grid
        down, across = anyres.tile_shape((width, height), grid)
        whole, parts = features[0], features[1:]
        # (down*across, side*side, hidden) -> (down*side, across*side, hidden): patches in reading order
        rows = parts.view(down, across, grid.side, grid.side, -1).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        if self.config.merge == "spatial":
            return torch.cat((whole, rows.flatten(0, 1)))
        kept = anyres.unpadded((width, height), rows.shape[0], rows.shape[1])
        rows = rows[kept.top : kept.bottom, kept.left : kept.right]
        newline = model.model.image_newline.to(rows).expand(rows.shape[0], 1, -1)
        return torch.cat((whole, torch.cat((rows, newline), dim=1).flatten(0, 1)))


def padded(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of the mean colour."""
    side = max(image.size)
    if image.width == image.height:
        return image
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def cut(image: Image.Image, grid: anyres.Grid) -> list[Image.Image]:
    """The whole picture squeezed into one tile, then its tiles in reading order on black."""
    target = anyres.best_resolution(image.size, grid.resolutions)
    fitted = resized(image, anyres.fitted(image.size, target))
    canvas = Image.new("RGB", target, (0, 0, 0))
    canvas.paste(fitted, ((target[0] - fitted.width) // 2, (target[1] - fitted.height) // 2))
    tile = grid.tile
    parts = [
        canvas.crop((left, top, left + tile, top + tile))
        for top in range(0, target[1], tile)
        for left in range(0, target[0], tile)
    ]
    return [resized(image, (tile, tile)), *parts]


def resized(image: Image.Image, size: anyres.Size) -> Image.Image:
    """Bicubic, with the same pixels under every Pillow.

    Rounding between the two passes makes their order visible. Pillow 13 takes the vertical one first where the
    height shrinks by more than twice what the width does; older ones never do.
    """
    width, height = size
    shrinks = image.height - height
    if shrinks > 0 and shrinks > 2 * (image.width - width):
        image = image.resize((image.width, height), Image.Resampling.BICUBIC)
    return image.resize(size, Image.Resampling.BICUBIC)


def _shortest_side(size: anyres.Size, side: int) -> anyres.Size:
    """The size with the shorter side at `side`, as CLIP's processor scales before it cuts out the middle."""
    width, height = size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def load_processor(vision: VisionPart) -> Any:
    """The tower's image processor on PIL, whose resampling the original's results rest on."""
    from transformers import CLIPImageProcessorPil

    settings: Mapping[str, Any]
    side = vision.image_size
    file = vision.folder and vision.folder / "preprocessor_config.json"
    if file and file.is_file():
        skip = ("image_processor_type", "feature_extractor_type", "processor_class")
        settings = {key: value for key, value in files.read_json(file).items() if key not in skip}
    else:
        settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    processor = CLIPImageProcessorPil(**settings)
    crop = processor.crop_size
    if crop is None or (crop["height"], crop["width"]) != (side, side):
        raise BadCheckpoint(
            f"the vision tower {vision.name!r} sees {side} pixels a side, but its preprocessor_config.json cuts its "
            f"pictures to {crop}"
        )
    return processor
