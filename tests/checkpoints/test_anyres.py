"""Any-res tilings and token counts, the original's and llava-hf's, for recorded picture sizes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextImageProcessorPil

from llava_core.checkpoints.anyres import Grid, best_resolution, tile_count, token_count
from llava_core.checkpoints.hub_vision import NextVision

SIZES: list[dict[str, Any]] = json.loads((Path(__file__).parent.parent / "fixtures" / "anyres.json").read_text())
PAIRS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
GRID = Grid(PAIRS, 336, 14)


def hub_vision(pinpoints: list[list[int]]) -> NextVision:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14),
        text_config=LlamaConfig(),
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextImageProcessorPil(
        image_grid_pinpoints=pinpoints, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    return NextVision(processor, config)


@pytest.mark.parametrize("record", SIZES, ids=lambda record: "x".join(map(str, record["size"])))
def test_a_size_is_cut_and_counted_as_recorded(record: dict[str, Any]) -> None:
    size = (record["size"][0], record["size"][1])
    assert list(best_resolution(size, PAIRS)) == record["resolution"]
    assert tile_count(size, GRID) == record["tiles"]
    assert token_count(size, GRID) == record["original_tokens"]
    assert hub_vision([list(pair) for pair in PAIRS]).count(size) == record["hf_tokens"]


def test_llava_hf_cuts_as_many_tiles_as_recorded() -> None:
    from PIL import Image

    vision = hub_vision([list(pair) for pair in PAIRS])
    for record in SIZES[::8]:
        prepared = vision.prepare(Image.new("RGB", tuple(record["size"])), alone=True)
        assert prepared.inputs["pixel_values"].shape[0] == record["hf_tiles"]
        assert prepared.tokens == record["hf_tokens"]


def test_a_converted_grid_gives_the_originals_counts() -> None:
    """With the pairs turned around, as `convert` writes them, only a rounding in about 20,000 sizes is left."""
    vision = hub_vision([[height, width] for width, height in PAIRS])
    dice = random.Random(5)
    sizes = [(dice.randint(20, 2000), dice.randint(20, 2000)) for _ in range(4000)]
    sizes += [tuple(record["size"]) for record in SIZES]
    assert sum(vision.count(size) != token_count(size, GRID) for size in sizes) <= 2
