"""A vision tower on its own: loaded from any checkpoint that has one, tried once to see what it gives."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from llava_core.errors import BadCheckpoint, BadRequest

_GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
"""Any-res: rows and columns of tiles, as LLaVA-1.6 has them."""
_LAYERS = {"clip_vision_model": -2, "siglip_vision_model": -2, "dinov2": -2, "dinov2_with_registers": -2}
_CLASS_TOKEN = ("clip_vision_model", "dinov2", "dinov2_with_registers")


@dataclass(frozen=True)
class Tower:
    """A tower and what is taken from it. `rows` reach the projector for one tile, each of `width` numbers."""

    model: Any
    config: Any
    processor: Any
    layer: int
    strategy: Literal["default", "full"]
    rows: int
    width: int
    pictures: str
    pinpoints: Sequence[tuple[int, int]] = ()
    processor_patch: int = 14
    extra_rows: int = 0
    """Rows beside those of the grid, as processors count: 1 for a class token, taken or not."""


def load_tower(path: str, *, pictures: str, layer: int | None, strategy: Literal["default", "full"] | None) -> Tower:
    """BadCheckpoint or BadRequest where there is no tower, or none that LLaVA's classes can use."""
    model, config = _load_model(path)
    processor = _load_processor(path)
    kind = str(config.model_type)
    layer = _LAYERS.get(kind, -1) if layer is None else layer
    processor, words = _prepared(processor, pictures)
    side = _side(processor)
    hidden = _try(model, processor, layer, path)
    rows = int(hidden.shape[1])
    grid, extra = _grid(rows, kind)
    strategy = strategy or ("default" if extra == 1 else "full")
    taken = rows - (strategy == "default")
    pinpoints: list[tuple[int, int]] = []
    if pictures == "anyres":
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or side != config.image_size or (side // patch) ** 2 != taken:
            raise BadRequest(
                f"any-res needs a tower that gives one row per patch of {kind}'s picture and nothing else; this gives "
                f"{taken} rows for {side} pixels a side",
                param="--pictures",
            )
        pinpoints = [(side * down, side * across) for down, across in _GRIDS]
        processor = _anyres(processor, pinpoints, side)
    width = int(hidden.shape[2])
    if width != config.hidden_size:
        raise BadRequest(
            f"layer {layer} of {kind} gives {width} numbers a row, not its hidden size {config.hidden_size}"
        )
    return Tower(
        model=model,
        config=config,
        processor=processor,
        layer=layer,
        strategy=strategy,
        rows=taken,
        width=width,
        pictures=words,
        pinpoints=pinpoints,
        # Processors count (side // patch)² rows, whatever the tower's stride is called.
        processor_patch=_patch(side, grid),
        extra_rows=rows - grid * grid,
    )


def register_towers() -> None:
    """Make the tower that comes with this code known to transformers."""
    with suppress(ModuleNotFoundError):
        importlib.import_module("llava_core.builtin.tower")


def _load_model(path: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    from llava_core.checkpoints.files import find_folder

    register_towers()
    folder = find_folder(path)
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        known: Any = MODEL_MAPPING
        cls: Any = known[type(config)] if type(config) in known else AutoModel  # noqa: SIM401 (no mapping's get)
        model, report = cls.from_pretrained(
            folder, config=config, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
        )
    except Exception as cause:
        raise BadCheckpoint(f"{path!r} is no vision tower that transformers loads: {cause}") from cause
    missing = [name for name in report["missing_keys"] if not name.endswith("position_ids")]
    if missing:
        raise BadCheckpoint(f"the tower {path!r} lacks weights: {', '.join(sorted(missing)[:5])}")
    return model.eval(), config


def _load_processor(path: str) -> Any:
    from transformers import AutoImageProcessor

    from llava_core.checkpoints.files import find_folder

    try:
        return AutoImageProcessor.from_pretrained(find_folder(path), backend="pil", trust_remote_code=False)
    except Exception as cause:
        raise BadCheckpoint(
            f"the tower {path!r} has no usable image processor ({cause}); fetch its preprocessor_config.json"
        ) from cause


def _prepared(processor: Any, pictures: str) -> tuple[Any, str]:
    """The processor that prepares a tile, and in words what it does."""
    if pictures not in ("auto", "own", "pad", "anyres"):
        raise BadRequest(f"--pictures must be auto, own, pad or anyres, not {pictures!r}", param="--pictures")
    crops = bool(getattr(processor, "do_center_crop", False))
    if pictures == "anyres":
        return processor, "any-res: the whole and up to four tiles"
    if pictures == "own" or (pictures == "auto" and not crops):
        return processor, "as the tower's own processor does"
    from transformers import LlavaImageProcessorPil

    side = _side(processor)
    settings = {key: getattr(processor, key) for key in ("image_mean", "image_std", "resample", "rescale_factor")}
    square = {"height": side, "width": side}
    return (
        LlavaImageProcessorPil(**settings, do_pad=True, size={"shortest_edge": side}, crop_size=square),
        "padded to a square, nothing cut off",
    )


def _anyres(processor: Any, pinpoints: Sequence[tuple[int, int]], side: int) -> Any:
    from transformers import LlavaNextImageProcessorPil

    settings = {key: getattr(processor, key) for key in ("image_mean", "image_std", "resample", "rescale_factor")}
    square = {"height": side, "width": side}
    grids = [list(size) for size in pinpoints]
    return LlavaNextImageProcessorPil(
        **settings, size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=grids
    )


def _side(processor: Any) -> int:
    pixels = processor(images=Image.new("RGB", (96, 96), "gray"), return_tensors="pt")["pixel_values"]
    height, width = pixels.shape[-2:]
    if height != width:
        raise BadCheckpoint(f"the tower's processor gives pictures of {width} x {height}; LLaVA's need a square")
    return int(height)


@torch.inference_mode()
def _try(model: Any, processor: Any, layer: int, path: str) -> torch.Tensor:
    pixels = processor(images=Image.new("RGB", (96, 96), "gray"), return_tensors="pt")["pixel_values"]
    try:
        hidden = model(pixels, output_hidden_states=True, return_dict=True).hidden_states
        chosen = hidden[layer]
    except Exception as cause:
        raise BadCheckpoint(f"the tower {path!r} gives no hidden states at layer {layer}: {cause}") from cause
    if chosen.ndim != 3:
        raise BadCheckpoint(
            f"the tower {path!r} gives features of shape {tuple(chosen.shape)}; LLaVA's classes need (pictures, rows, "
            "width)"
        )
    return chosen


def _grid(rows: int, kind: str) -> tuple[int, int]:
    """The side of the grid of rows, and how many stand before it: a class token's."""
    before = 1 if kind in _CLASS_TOKEN else 0
    for extra in (before, 0, 1, 5):
        side = math.isqrt(max(0, rows - extra))
        if side and side * side == rows - extra:
            return side, extra
    return math.isqrt(rows), 0


def _patch(side: int, grid: int) -> int:
    return next((patch for patch in range(side // grid, 0, -1) if side // patch == grid), side // grid)
