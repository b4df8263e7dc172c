"""A batch laid end to end computes what each sample computes alone, and what a padded batch does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensorMode

from llava_core.train import attention
from llava_core.train.attention import Layout, lay_out, samples_attention, use_samples_attention
from llava_core.train.build import build
from llava_core.train.dataset import Collate
from llava_core.train.settings import settle
from llava_core.train.stage import Stage, prepare
from tests.train.conftest import Parts
from tests.train.parts import sample, write_samples


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [3, 9, 4, 30, 3, 1], [800, 6, 900]])
def test_packed_attention_is_each_samples_own(lengths: list[int], kv_heads: int) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    query, key, value = (torch.randn(1, heads, total, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    module = torch.nn.Identity()
    out, _ = samples_attention(module, query, key, value, None, layout=lay_out(bounds, max(lengths)))
    given = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (query, key, value), given)
    alone = [
        torch.nn.functional.scaled_dot_product_attention(
            *(each[:, :, begin:end] for each in (query, key, value)), is_causal=True, enable_gqa=True
        ).transpose(1, 2)
        for begin, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False)
    ]
    expected = torch.cat(alone, 1)
    assert torch.allclose(out, expected, atol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (query, key, value), given), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_on_cuda_half_precision_goes_through_one_flash_attention(
    monkeypatch: pytest.MonkeyPatch, half: torch.dtype
) -> None:
    """Queries and keys are float32 after positions turned them, as in full fine-tuning under autocast."""
    seen: list[torch.dtype] = []

    def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
        seen.extend(each.dtype for each in (query, key, value))
        return query.transpose(1, 2)

    monkeypatch.setattr(attention, "_varlen", varlen)
    with FakeTensorMode():
        query, key = (torch.empty(1, 2, 8, 16, device="cuda") for _ in range(2))
        value = torch.empty(1, 2, 8, 16, device="cuda", dtype=half)
        layout = Layout(torch.empty(2, dtype=torch.int32, device="cuda"), 8, alone=((0, 8),))
        out, _ = samples_attention(torch.nn.Identity(), query, key, value, None, layout=layout)
    assert seen == [half] * 3
    assert out.shape == (1, 8, 2, 16)


def test_positions_make_queries_float32_where_the_language_model_learns_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, parts: Parts, mixed: Path
) -> None:
    """What the kernel is chosen by: the values' precision, which is autocast's."""
    stage = ready(parts.built, mixed)
    seen: list[tuple[torch.dtype, ...]] = []
    whole = attention._stacked

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((query.dtype, key.dtype, value.dtype))
        return whole(query, key, value, *rest)

    monkeypatch.setattr(attention, "_stacked", watched)
    with torch.autocast("cpu", torch.bfloat16):
        stage.model(**Collate(True, cached=False, pad=0)([stage.data.lessons[0]]))
    assert set(seen) == {(torch.float32, torch.float32, torch.bfloat16)}


def ready(model: Path, data: Path, **given: Any) -> Stage:
    chosen = {"model": str(model), "data": (str(data),), "precision": "fp32", "cache": "off", "llm_rate": 1e-3}
    return prepare(settle("finetune", None, chosen | given), Console(quiet=True), records=None)


def gradients(stage: Stage, indices: list[int], *, packing: bool) -> dict[str, torch.Tensor]:
    model = stage.model
    model.zero_grad()
    collate = Collate(packing, cached=False, pad=0)
    model(**collate([stage.data.lessons[index] for index in indices])).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module")
def mixed(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples with one picture, two, and none, of different lengths."""
    root = tmp_path_factory.mktemp("mixed")
    dice = random.Random(0)
    for name in ("a.png", "b.png"):
        Image.effect_noise((dice.randint(30, 90), 40), 80).save(root / name)
    text = {"conversations": [{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "Yes, it is." * 5}]}
    records = [sample("a.png", "red"), sample(["b.png", "a.png"], "A blue square."), text, sample("b.png", "green")]
    return write_samples(root / "mixed.json", records)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_packed_batch_learns_what_a_padded_one_does(family: str, parts: Parts, mixed: Path, tmp_path: Path) -> None:
    built = parts.built
    if family == "llava_next":
        built = build(str(parts.tower), str(parts.llm), tmp_path / "next", pictures="anyres").folder
    packed = ready(built, mixed)
    assert packed.packing
    padded = ready(built, mixed, packing=False)
    assert not padded.packing
    ours, theirs = gradients(packed, [0, 1, 2, 3], packing=True), gradients(padded, [0, 1, 2, 3], packing=False)
    assert ours.keys() == theirs.keys()
    assert any("projector" in name for name in ours)
    for name, expected in theirs.items():
        assert torch.allclose(ours[name], expected, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_the_loss_is_transformers_own(family: str, parts: Parts, mixed: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    built = parts.built
    if family == "llava_next":
        built = build(str(parts.tower), str(parts.llm), tmp_path / "next", pictures="anyres").folder
    stage = ready(built, mixed)
    model: Any = AutoModelForImageTextToText.from_pretrained(built, dtype=torch.float32)
    for index in range(4):
        item = stage.data.lessons[index]
        ids = torch.tensor([item.lesson.ids])
        labels = torch.full_like(ids, -100)
        for begin, end in item.lesson.taught:
            labels[0, begin:end] = ids[0, begin:end]
        shown: dict[str, Any] = {"pixel_values": torch.cat(item.tiles)} if item.tiles else {}
        if item.tiles and family == "llava_next":
            shown["image_sizes"] = torch.tensor(item.sizes)
        with torch.no_grad():
            expected = model(input_ids=ids, labels=labels, **shown).loss
            loss = stage.model(**Collate(True, cached=False)([item])).loss
        assert torch.allclose(loss, expected, atol=1e-5)


def test_a_windowed_language_model_trains_on_padded_batches(parts: Parts) -> None:
    stage = ready(parts.built, parts.squares)
    stage.model.config.text_config.sliding_window = 16
    assert not use_samples_attention(stage.model)
