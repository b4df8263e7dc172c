"""The tower behaves like any of transformers': it is found by its name, saves, loads, and sees each picture alone."""

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoConfig, AutoModel

from llava_core.builtin.anchors import anchored_projector, class_names
from llava_core.builtin.columns import COLOURS, Columns
from llava_core.builtin.tower import SeeingConfig, SeeingTower


@pytest.fixture(scope="module")
def tower() -> SeeingTower:
    torch.manual_seed(0)
    return SeeingTower(SeeingConfig(names=4, trunk_size=64, width=32)).eval()


def test_it_loads_through_the_auto_classes_and_sees_the_same(tower: SeeingTower, tmp_path: Path) -> None:
    tower.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SeeingConfig)
    again = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 288, 288)
    with torch.inference_mode():
        assert torch.equal(again(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_it_gives_as_many_rows_as_its_patches_promise(tower: SeeingTower) -> None:
    with torch.inference_mode():
        out = tower(torch.randn(2, 3, 288, 288), output_hidden_states=True)
    rows = (tower.config.image_size // tower.config.patch_size) ** 2
    assert out.last_hidden_state.shape == (2, rows, tower.config.hidden_size)
    assert out.hidden_states is not None
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


def test_a_picture_is_seen_alike_alone_and_among_others(tower: SeeingTower) -> None:
    pixels = torch.randn(3, 3, 288, 288)
    with torch.inference_mode():
        together, alone = tower(pixels).last_hidden_state, tower(pixels[1:2]).last_hidden_state
    assert torch.allclose(together[1:2], alone, atol=1e-4)


def test_it_runs_in_half_precision(tower: SeeingTower) -> None:
    half = SeeingTower(cast(SeeingConfig, tower.config)).eval().bfloat16()
    with torch.inference_mode():
        out = half(torch.randn(1, 3, 288, 288, dtype=torch.bfloat16)).last_hidden_state
    assert out.dtype == torch.bfloat16
    assert bool(out.isfinite().all())


def test_the_anchored_projector_says_each_column_s_word() -> None:
    table: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)

    def embed(word: str) -> torch.Tensor:
        return table.setdefault(word, torch.randn(576, generator=generator) / 8)

    columns = Columns(names=3)
    weights = anchored_projector(columns, ("cat", "dog", "hat"), embed, 576)
    for colour in COLOURS:
        row = torch.zeros(columns.total)
        row[columns.place("colour").start + COLOURS.index(colour)] = 1
        hidden = torch.nn.functional.gelu(weights["linear_1.weight"] @ row)
        said = weights["linear_2.weight"] @ hidden
        nearest = max(COLOURS, key=lambda word: float(torch.cosine_similarity(said, table[word], dim=0)))
        assert nearest == colour


def test_there_is_a_name_for_each_of_the_classifier_s_classes() -> None:
    names = class_names()
    assert len(set(names)) == 1000
    assert "" not in names
