"""The tiny random checkpoints: plain transformers loads them, and they are fit to test an engine with."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from llava_core.checkpoints.tiny import FAMILIES, NOTE, build_tiny
from llava_core.checkpoints.tiny_config import CONTEXT_LENGTH

ROOT = Path(__file__).resolve().parents[2]
TEXT = ("llama", "qwen2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {family: build_tiny(family, root / family) for family in FAMILIES}


def load(folder: Path) -> tuple[Any, Any]:
    auto: Any = AutoModelForCausalLM if folder.name in TEXT else AutoModelForImageTextToText
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def inputs(folder: Path, tokenizer: Any, text: str, picture: Image.Image | None) -> dict[str, torch.Tensor]:
    """What a processor makes of one turn. The families with a video side have processors that torchvision alone can
    load, so their placeholders are counted here."""
    content = [{"type": "text", "text": text}] if folder.name not in TEXT else text
    if picture is not None:
        content = [{"type": "image"}, *content]
    turn = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    if picture is None:
        return dict(tokenizer(prompt, return_tensors="pt"))
    if folder.name in ("llava", "llava_next"):
        return dict(AutoProcessor.from_pretrained(folder)(images=[picture], text=[prompt], return_tensors="pt"))
    pixels = dict(AutoImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt"))
    if folder.name == "internvl":
        count, token = 4 * int(pixels.pop("num_patches").sum()), "<IMG_CONTEXT>"
    elif folder.name == "llava_onevision":
        # A wide picture takes the grid of two tiles side by side, some of whose rows are padding.
        count, token = 16 + onevision_rows(picture), "<image>"
    else:
        count, token = int(pixels["image_grid_thw"].prod()) // 4, "<|image_pad|>"
    encoded = tokenizer(prompt.replace(token, token * count), return_tensors="pt")
    if folder.name.startswith("qwen"):
        pixels["mm_token_type_ids"] = (encoded["input_ids"] == tokenizer.convert_tokens_to_ids(token)).int()
    return {**encoded, **pixels}


def onevision_rows(picture: Image.Image) -> int:
    assert picture.size == (100, 50), "two tiles of 4 x 4 features, none of them padding, a newline after each row"
    return 4 * 8 + 4


def answer(model: Any, tokenizer: Any, given: dict[str, torch.Tensor], **options: Any) -> str:
    ids = model.generate(**given, **{"max_new_tokens": 16, "do_sample": False} | options)
    return tokenizer.decode(ids[0, given["input_ids"].shape[1] :])


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (50, 100, 3), dtype=np.uint8)
    return [Image.new("RGB", (100, 50), "red"), Image.fromarray(noise)]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_and_it_answers_in_words(folders: dict[str, Path], family: str) -> None:
    model, tokenizer = load(folders[family])
    shown = [None] if family in TEXT else pictures()
    said = [answer(model, tokenizer, inputs(folders[family], tokenizer, "What is it?", picture)) for picture in shown]
    said.append(answer(model, tokenizer, inputs(folders[family], tokenizer, "And where?", shown[0])))
    assert len(set(said)) == len(said), "question and picture must both matter, or tests with it prove nothing"
    for text in said:
        assert "\ufffd" not in text
        assert re.fullmatch(r"[A-Za-z ,.?!;:]+", text.removesuffix(tokenizer.eos_token)), text


def test_sampled_answers_end_by_themselves_sooner_or_later(folders: dict[str, Path]) -> None:
    model, tokenizer = load(folders["llama"])
    torch.manual_seed(0)
    given = inputs(folders["llama"], tokenizer, "Hello", None)
    options = {"max_new_tokens": 200, "do_sample": True, "temperature": 0.7, "num_return_sequences": 16}
    ids = model.generate(**given, **options)[:, given["input_ids"].shape[1] :]
    lengths = (ids != tokenizer.pad_token_id).sum(dim=1).tolist()
    assert min(lengths) < 200
    assert max(lengths) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_it_has_a_context_a_template_a_note_and_text_survives_its_tokenizer(
    folders: dict[str, Path], family: str
) -> None:
    config = json.loads((folders[family] / "config.json").read_text())
    assert config["llava_serve_note"] == NOTE
    assert config.get("text_config", config)["max_position_embeddings"] == CONTEXT_LENGTH >= 2048
    assert (folders[family] / "chat_template.jinja").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    for text in ("Grüße an 東京 🙂!", "tabs\tand\n\n  spaces", "I am reading the sign."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        files = sorted(folder.iterdir())
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    before = torch.get_rng_state()
    first, again = (digest(build_tiny("llava", tmp_path / name, seed=5)) for name in "ab")
    assert first == again
    assert first != digest(build_tiny("llava", tmp_path / "c", seed=6))
    assert torch.equal(before, torch.get_rng_state())


def test_the_command_builds_one_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llava_core.checkpoints.tiny", str(tmp_path / "out"), "--family", "qwen2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "tiny random qwen2" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_unknown_family_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llava_next"):
        build_tiny("gpt", tmp_path)
