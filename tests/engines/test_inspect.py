"""A look into the engine tells what the model itself would tell: its attention, its tokens, its tiles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from llava_core.checkpoints.base import PlacedImage, PreparedImage, Prompt
from llava_core.config import BatchLimits, InspectLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.inspector import Inspector
from llava_core.engines.transformers.watch import Watch
from llava_core.errors import BadRequest, Overloaded
from llava_core.inspection import Box, Grid, Looks, SeenPrompt
from llava_core.types import Begun, ImagePart, Request, TextPart, user
from tests.engines.exactness import PICTURE_FAMILIES, greedy, load, picture, token_ids
from tests.engines.test_native import IDS, SHAPE, Beside, make, needs_kernel

QUESTION = "What is in this picture, and where is it?"


@pytest.fixture(params=PICTURE_FAMILIES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[TransformersEngine]:
    """In steps so small that what is looked at is computed in several."""
    made = TransformersEngine(load(request.param), batch=BatchLimits(step_tokens=16))
    made.family = request.param  # type: ignore[attr-defined]
    yield made
    await made.aclose()


async def answered(engine: TransformersEngine, *parts: str | TextPart | ImagePart, tokens: int = 8) -> Request:
    """A chat with the answer that it got."""
    asked = greedy(user(*parts), tokens=tokens)
    return replace(asked, begun=Begun("", tuple(await token_ids(engine, asked))))


def whole_attention(family: str, request: Request, prompt: Prompt, window: int = 0) -> torch.Tensor:
    """By the model itself: (layers, tokens, tokens), the mean over heads."""
    loaded = load(family)
    model: Any = loaded.model
    for config in (model.config, model.config.get_text_config()):
        config._attn_implementation = "eager"
    model.set_attn_implementation({"": "eager", "text_config": "eager"})
    assert request.begun is not None
    ids = torch.tensor([[*prompt.ids, *request.begun.token_ids[:-1]]])
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in prompt.images[0].image.inputs:
        part = prompt.images[0].image.inputs[name]
        inputs[name] = part[None] if family in ("llava_next", "llava_onevision") and name == "pixel_values" else part
    if family == "llava_onevision":
        inputs["batch_num_images"] = torch.tensor([1])
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == loaded.facts.image_token_id).int()
    with torch.inference_mode():
        output = model(**inputs, output_attentions=True, return_dict=True)
    return torch.stack([layer[0].float().mean(0) for layer in output.attentions])


def followed(attention: torch.Tensor, rows: list[int], ends: list[int]) -> torch.Tensor:
    """The rollout as its paper writes it, with matrices, where the rows of `ends` look nowhere but at themselves."""
    eye = torch.eye(attention.shape[1])
    flow = eye
    for layer in attention:
        mixed = layer / 2 + eye / 2
        mixed[ends] = eye[ends]
        flow = mixed @ flow
    return flow[rows].mean(0)


async def test_where_it_looked_is_where_the_model_itself_looks(engine: TransformersEngine) -> None:
    family: str = engine.family  # type: ignore[attr-defined]
    request = await answered(engine, picture(4, 100, 60), QUESTION)
    prompt = load(family).prompt(request.messages, [_decoded(request)])
    expected = whole_attention(family, request, prompt)
    seen = await engine.attend(request, 2, 3)
    rows = [len(prompt.ids) - 1 + token for token in (2, 3, 4)]
    placed = prompt.images[0]
    columns = slice(placed.start, placed.start + placed.image.tokens)
    found = torch.tensor(seen.pictures[0].layers.unpack())
    torch.testing.assert_close(found, expected[:, rows, columns].mean(1), rtol=2e-3, atol=2e-5)
    ends = list(range(placed.start + placed.image.tokens))
    flow = followed(expected, rows, ends)[columns]
    torch.testing.assert_close(torch.tensor(seen.pictures[0].rollout.unpack()[0]), flow, rtol=2e-3, atol=2e-5)
    every = [len(prompt.ids) - 1 + token for token in range(8)]
    usual = torch.cat((expected[:, every, columns].mean(1), followed(expected, every, ends)[columns][None]))
    torch.testing.assert_close(torch.tensor(seen.pictures[0].usual.unpack()), usual, rtol=2e-3, atol=2e-5)
    assert seen.rollout_from == placed.start + placed.image.tokens


async def test_a_second_look_and_one_beside_other_chats_tell_the_same(engine: TransformersEngine) -> None:
    request = await answered(engine, picture(4, 100, 60), QUESTION)
    first = await engine.attend(request, 0, 1)
    other = greedy(user("Say something long."), tokens=30)
    alone = await token_ids(engine, other)
    beside, *looks = await asyncio.gather(
        token_ids(engine, other), engine.attend(request, 0, 1), engine.attend(request, 7, 1)
    )
    assert beside == alone
    before, again = (torch.tensor(one.pictures[0].layers.unpack()) for one in (first, looks[0]))
    torch.testing.assert_close(before, again, rtol=1e-3, atol=1e-5)
    assert engine.status().running == 0


async def test_the_prompt_is_told_token_by_token_with_its_pictures_folded(engine: TransformersEngine) -> None:
    request = await answered(engine, picture(4, 100, 60), "<image> is </s> text: ä🙂東")
    seen = await engine.look(request)
    pictures = [piece for piece in seen.pieces if piece.kind == "picture"]
    assert [piece.picture for piece in pictures] == [0]
    assert sum(piece.tokens for piece in seen.pieces) == seen.tokens
    words = "".join(text for piece in seen.pieces if piece.kind == "text" for text in piece.texts)
    assert "<image> is </s> text: ä🙂東" in words
    specials = [piece.texts[0] for piece in seen.pieces if piece.kind == "special"]
    assert specials
    assert "</s>" not in specials
    one = seen.pictures[0]
    assert one.tokens == pictures[0].tokens == sum(tile.tokens for tile in one.tiles) + one.separators
    assert one.separators + sum(grid.rows * grid.columns for grid in one.grids) == one.tokens
    text = "".join([chunk.text async for chunk in engine.generate(replace(request, begun=None))])
    assert "".join(seen.answer).strip() == text.strip()


@pytest.mark.parametrize("size", [(100, 60), (60, 130), (64, 64)], ids=str)
@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_a_spot_in_the_picture_is_found_where_the_grid_says(family: str, size: tuple[int, int]) -> None:
    loaded = load(family)
    _keep_to_patches(loaded.model)
    width, height = size
    blank = Image.new("RGB", size, (90, 90, 90))
    spot = Box(width * 0.36, height * 0.6, width * 0.44, height * 0.68)
    marked = blank.copy()
    marked.paste((255, 255, 255), tuple(round(side) for side in (spot.left, spot.top, spot.right, spot.bottom)))
    before, after = (_prepared(loaded, image) for image in (blank, marked))
    changed = (loaded.encode([after])[0] - loaded.encode([before])[0]).float().norm(dim=-1)
    found = 0
    for grid in loaded.layout(after).grids:
        cells = changed[_cells(grid)] > 0.2 * changed.max()
        for row, column in cells.nonzero().tolist():
            box = _cell(grid, row, column)
            # Resampling blurs over the edges of cells.
            wide, tall = (box.right - box.left) * 0.6, (box.bottom - box.top) * 0.6
            assert box.left - wide < spot.right
            assert box.right + wide > spot.left
            assert box.top - tall < spot.bottom
            assert box.bottom + tall > spot.top
            found += 1
    assert found


@needs_kernel
@pytest.mark.parametrize("name", ["llama", "window", "biases", "normed heads"])
@pytest.mark.parametrize("chunks", [(60,), (26, 30, 4), (30, 1, 29)], ids=str)
def test_the_kernel_tells_what_the_model_itself_tells(name: str, chunks: tuple[int, ...]) -> None:
    model: Any = make(name, torch.float32)
    model.set_attn_implementation("eager")
    prompt = Prompt(IDS[:50], (PlacedImage(6, PreparedImage("picture", {}, 20)),))
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.tensor([IDS]))
        attentions = model(inputs_embeds=embedded, output_attentions=True).attentions
    beside = Beside(make(name))
    sequence = beside.begin(prompt)
    sequence.ids = list(IDS)
    sequence.watch = Watch(11, 1000)
    sequence.features = {"picture": embedded[0, 6:26].bfloat16()}
    for count in chunks:
        beside.run((sequence, count))
    found = sequence.watch.seen(sequence, 3, 2)
    assert found.layers == SHAPE["num_hidden_layers"]
    expected = torch.stack([layer[0].mean(0)[52:54, 6:26].mean(0) for layer in attentions])
    torch.testing.assert_close(torch.tensor(found.pictures[0].layers.unpack()), expected, rtol=0.05, atol=0.004)
    for (_, start), shares in sequence.watch.shares.items():
        assert start >= 26
        torch.testing.assert_close(shares.sum(-1), torch.ones(len(shares)))


async def test_what_cannot_be_looked_at_is_said_in_a_sentence() -> None:
    engine = TransformersEngine(load("llava"))
    request = await answered(engine, picture(4), QUESTION)
    with pytest.raises(BadRequest, match="no picture"):
        await engine.attend(await answered(engine, "Hello"), 0, 1)
    with pytest.raises(BadRequest, match="answer is missing"):
        await engine.attend(replace(request, begun=None), 0, 1)
    with pytest.raises(BadRequest, match="the answer has 8"):
        await engine.attend(request, 7, 2)
    with pytest.raises(BadRequest, match="tokens go from 0"):
        await engine.attend(replace(request, begun=Begun("", (99_999_999,))), 0, 1)
    with pytest.raises(BadRequest, match="placeholder"):
        await engine.attend(replace(request, begun=Begun("", (load("llava").facts.image_token_id or 0,))), 0, 1)
    await engine.aclose()


async def test_looks_wait_for_one_another_and_too_many_are_told_to_come_back() -> None:
    inspector = Inspector(load("llava"), InspectLimits(max_waiting=1))
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def look() -> None:
        async with inspector.taking_turns():
            entered.set()
            await leave.wait()

    first, second = asyncio.create_task(look()), asyncio.create_task(look())
    await entered.wait()
    with pytest.raises(Overloaded):
        async with inspector.taking_turns():
            pass
    leave.set()
    await asyncio.gather(first, second)


async def test_of_a_long_text_the_last_rows_are_noted_and_the_look_says_from_where() -> None:
    loaded = load("llava")
    engine = TransformersEngine(loaded)
    least = 4 * 2 * loaded.info.context_length
    engine._inspector = Inspector(loaded, InspectLimits(memory_bytes=20 * least))
    request = await answered(engine, picture(4), "word " * 60)
    seen = await engine.attend(request, 0, 8)
    prompt: SeenPrompt = await engine.look(request)
    assert seen.rollout_from > prompt.pictures[0].start + prompt.pictures[0].tokens
    assert sum(map(sum, seen.pictures[0].layers.unpack())) > 0
    await engine.aclose()


def test_shares_travel_in_sixteen_bits() -> None:
    rows = [[0.5, 0.25, 0.0], [0.0, 0.0, 0.0], [1e-6, 3e-6, 2e-6]]
    packed = Looks.pack(rows)
    for row, back in zip(rows, packed.unpack(), strict=True):
        assert back == pytest.approx(row, abs=max(row) / 60_000)


def _keep_to_patches(model: Any) -> None:
    """Layers of the tower add nothing, so that what a patch shows stays in its place."""
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    ends = ("out_proj", "fc2", "attn.proj", "down_proj", "projection_layer")
    for name, module in tower.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(ends) and "merger" not in name:
            torch.nn.init.zeros_(module.weight)


def _prepared(loaded: Any, image: Image.Image) -> PreparedImage:
    return loaded.prompt([user(ImagePart("data:,"), "Hi")], [image]).images[0].image


def _decoded(request: Request) -> Image.Image:
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(request.images[0].url.partition(",")[2]))).convert("RGB")


def _cells(grid: Grid) -> torch.Tensor:
    rows = torch.arange(grid.rows)[:, None] * grid.stride
    return grid.start + rows + torch.arange(grid.columns)


def _cell(grid: Grid, row: int, column: int) -> Box:
    wide, tall = (grid.box.right - grid.box.left) / grid.columns, (grid.box.bottom - grid.box.top) / grid.rows
    left, top = grid.box.left + column * wide, grid.box.top + row * tall
    return Box(left, top, left + wide, top + tall)
