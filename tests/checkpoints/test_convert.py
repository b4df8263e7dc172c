"""A converted checkpoint answers in plain transformers as the original code did, and here too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.chat_template_utils import render_jinja_template
from typer.testing import CliRunner

from llava_core.checkpoints.__main__ import app
from llava_core.checkpoints.convert import Converted, convert
from llava_core.checkpoints.jinja_template import chat_template
from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.prompting import flatten
from llava_core.checkpoints.recognise import recognise
from llava_core.conversation import TEMPLATES, render
from llava_core.errors import BadCheckpoint
from llava_core.types import Message, assistant, system, user
from tests.checkpoints.originals import (
    IMAGE,
    NAMES,
    ORIGINALS,
    base_of,
    greedy,
    messages_of,
    pictures_of,
    records,
)


@pytest.fixture(scope="module", params=NAMES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Converted]:
    name: str = request.param
    out = tmp_path_factory.mktemp("converted") / name
    return name, convert(recognise(ORIGINALS / name, base=base_of(name)), out)


def turns_of(messages: list[Message]) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if part == IMAGE else {"type": "text", "text": part.text}  # type: ignore[union-attr]
                for part in message.parts
            ],
        }
        for message in messages
    ]


def test_plain_transformers_answers_as_the_original(converted: tuple[str, Converted]) -> None:
    name, done = converted
    processor = AutoProcessor.from_pretrained(done.folder)
    model, report = AutoModelForImageTextToText.from_pretrained(
        done.folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    # Several turns; a picture after the text; two pictures.
    for record in records(name)[1:4]:
        text = processor.apply_chat_template(turns_of(messages_of(record)), add_generation_prompt=True)
        assert text.replace("<im_start>", "").replace("<im_end>", "") == record["prompt"]
        inputs = processor(text=text, images=pictures_of(record) or None, return_tensors="pt")
        assert inputs["input_ids"].shape[1] == record["prefill_length"]
        # The recording goes on beyond the end of text.
        output = model.generate(**inputs, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=None)
        assert output[0, record["prefill_length"] :].tolist() == record["greedy_tokens"]


def test_it_loads_here_as_well_with_the_same_ends(converted: tuple[str, Converted]) -> None:
    name, done = converted
    loaded = load_checkpoint(done.folder, device="cpu", dtype="float32")
    record = records(name)[1]
    prompt = loaded.prompt(messages_of(record), pictures_of(record))
    assert len(prompt.ids) == record["prefill_length"]
    assert greedy(loaded, prompt, 24)[1] == record["greedy_tokens"]
    original = load_checkpoint(ORIGINALS / name, base=base_of(name), device="cpu", dtype="float32")
    assert loaded.facts.stop_strings == original.facts.stop_strings
    assert loaded.facts.eos_ids == original.facts.eos_ids


def test_weights_have_the_hubs_names_and_precision(converted: tuple[str, Converted]) -> None:
    _, done = converted
    with safe_open(done.folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("language_model.lm_head.weight").dtype == torch.float16
    first = {".".join(name.split(".")[:2]) for name in names} - {"image_newline"}
    assert first == {
        "vision_tower.vision_model",
        "language_model.model",
        "language_model.lm_head",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    }
    readable = (done.folder / "config.json").stat().st_mode
    assert (done.folder / "model.safetensors").stat().st_mode == readable
    assert not list(done.folder.parent.glob("*.unfinished"))


def test_what_plain_transformers_does_otherwise_is_said(converted: tuple[str, Converted]) -> None:
    name, done = converted
    said = " ".join(done.differences)
    assert ("stop_strings=['###']" in said) == (name == "llava-7b-v0")
    assert ("one picture size in 20,000" in said) == ("v1.6" in name)


CHATS: list[list[Message]] = [
    [user(IMAGE, "What?")],
    [user("Hi"), assistant("Hello."), user("And?")],
    [system("Be brief."), user("Look", IMAGE), assistant("Yes."), user(IMAGE, IMAGE, "Both?")],
    [user(IMAGE)],
    [user("First", IMAGE, "then", IMAGE, "last")],
    [system(""), user("No system prompt.")],
    [system("One."), system("Two."), user("Go.")],
]


@pytest.mark.parametrize("image", ["<image>", "<im_start><image><im_end>"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_renders_what_ours_does(name: str, image: str) -> None:
    template = TEMPLATES[name]
    for chat in CHATS:
        systems = [message.text for message in chat if message.role == "system"]
        turns = [(message.role, flatten(message, image)) for message in chat if message.role != "system"]
        want = render(template, turns, system="\n".join(systems) if systems else None)
        (got,), _ = render_jinja_template(
            conversations=[turns_of(chat)], chat_template=chat_template(template, image), add_generation_prompt=True
        )
        assert got == want


def test_what_cannot_be_converted_is_said(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="in transformers' format already"):
        convert(recognise(tiny["llava"]), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BadCheckpoint, match="not empty"):
        convert(recognise(ORIGINALS / "llava-7b-v0"), tmp_path / "full")


def test_the_command_describes_and_converts(tmp_path: Path) -> None:
    out = tmp_path / "hf"
    done = CliRunner().invoke(app, [str(ORIGINALS / "llava-v1.6-mistral-7b"), "--convert", str(out)])
    assert done.exit_code == 0, done.output
    flat = " ".join(done.output.split())
    for words in (
        "original LLaVA format, full weights (llava_mistral)",
        "mistral_instruct: config.json says model_type 'llava_mistral'",
        "1,024 tokens",
        "135 tokens at 336x336",
        "16 bit 8 bit 4 bit",
        "memory needed",
        "written in llava-hf format",
    ):
        assert words in flat
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlavaNextForConditionalGeneration"]
    again = CliRunner().invoke(app, [str(out)])
    assert "transformers (llava-hf) format (llava_next)" in again.output


@pytest.mark.parametrize("family", ["llava_onevision", "internvl", "qwen3_vl", "qwen2"])
def test_the_command_describes_other_families(tiny: dict[str, Path], family: str) -> None:
    done = CliRunner().invoke(app, [str(tiny[family])])
    assert done.exit_code == 0, done.output
    assert "chat_template.jinja" in done.output
    assert ("tokens at 640x480" in " ".join(done.output.split())) == (family != "qwen2")


def test_the_command_says_what_is_wrong_and_fails(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "llava_core.checkpoints", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "BadCheckpoint: " in done.stderr
    assert "the folder is empty" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "from llava_core.checkpoints.__main__ import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == 0
