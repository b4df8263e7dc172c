"""Checkpoints in transformers' format: loaded, prompted and encoded as plain transformers does, or refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from llava_core.checkpoints.base import Prompt
from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.loaded import Checkpoint
from llava_core.errors import BadCheckpoint, BadImage, BadRequest
from llava_core.types import Message, assistant, user
from tests.checkpoints.originals import IMAGE, picture

WITH_PICTURES = ("llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl")
CHATS: list[list[Message]] = [
    [user(IMAGE, "What is in the picture?")],
    [user(IMAGE, "Look."), assistant("A dog."), user(IMAGE, "And here?")],
]


@pytest.fixture
def copy(tiny: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(tiny[family], tmp_path / "copy"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def raw_inputs(prompt: Prompt, family: str) -> dict[str, torch.Tensor]:
    """The prepared tensors as plain transformers takes them."""
    given: dict[str, torch.Tensor] = {}
    for key in prompt.images[0].image.inputs:
        each = [placed.image.inputs[key] for placed in prompt.images]
        given[key] = torch.cat(each)
    if family == "llava_onevision":
        given["batch_num_images"] = torch.tensor([len(prompt.images)])
    if family.startswith("qwen"):
        given["mm_token_type_ids"] = torch.zeros(1, len(prompt.ids), dtype=torch.int)
        for placed in prompt.images:
            given["mm_token_type_ids"][0, placed.start : placed.start + placed.image.tokens] = 1
    return given


def given_back(loaded: Checkpoint, family: str, features: list[torch.Tensor]) -> Any:
    """Features as the model takes them in place of pictures."""
    width: int = loaded.model.get_input_embeddings().weight.shape[1]
    if family == "internvl":
        return BaseModelOutputWithPooling(pooler_output=torch.cat(features)[None])
    if family != "qwen3_vl":
        return BaseModelOutputWithPooling(pooler_output=features)
    first, *deep = zip(*(rows.split(width, dim=-1) for rows in features), strict=True)
    return BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deep)


@pytest.mark.parametrize("chat", CHATS, ids=["one picture", "two pictures"])
@pytest.mark.parametrize("family", WITH_PICTURES)
@torch.inference_mode()
def test_features_and_positions_are_those_of_plain_transformers(
    tiny: dict[str, Path], family: str, chat: list[Message]
) -> None:
    loaded = load_checkpoint(tiny[family], device="cpu", dtype="float32")
    plain: Any = AutoModelForImageTextToText.from_pretrained(tiny[family]).eval()
    pictures = [picture("big"), picture("tall")][: sum(len(message.images) for message in chat)]
    prompt = loaded.prompt(chat, pictures)
    ids = torch.tensor([prompt.ids])
    for placed in prompt.images:
        assert set(prompt.ids[placed.start : placed.start + placed.image.tokens]) == {loaded.facts.image_token_id}
    want = plain(input_ids=ids, **raw_inputs(prompt, family)).logits
    features = loaded.encode([placed.image for placed in prompt.images])
    model: Any = loaded.model
    positions = loaded.positions(prompt)
    got = model(
        input_ids=ids,
        mm_encoder_outputs={"image": given_back(loaded, family, features)},
        **({} if positions is None else {"position_ids": positions[:, None]}),
    ).logits
    assert torch.allclose(got, want, atol=1e-4)
    assert (positions is not None) == family.startswith("qwen")


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_prompts_and_pixels_are_those_of_the_processor(tiny: dict[str, Path], family: str) -> None:
    loaded = load_checkpoint(tiny[family], device="cpu", dtype="float32")
    processor = AutoProcessor.from_pretrained(tiny[family])
    for chat in CHATS:
        pictures = [picture("wide"), picture("odd")][: sum(len(message.images) for message in chat)]
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"} if part == IMAGE else {"type": "text", "text": part.text}  # type: ignore[union-attr]
                    for part in message.parts
                ],
            }
            for message in chat
        ]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        want = processor(images=pictures, text=text, return_tensors="pt")
        prompt = loaded.prompt(chat, pictures)
        assert list(prompt.ids) == want["input_ids"][0].tolist()
        for placed, pixels in zip(prompt.images, want["pixel_values"], strict=True):
            own = placed.image.inputs["pixel_values"]
            assert torch.equal(own, pixels[: len(own)] if family == "llava_next" else pixels[None])


def test_a_processor_that_lacks_its_settings_is_no_obstacle(copy: Callable[[str], Path]) -> None:
    folder = copy("llava")
    edit(
        folder / "processor_config.json",
        patch_size=None,
        vision_feature_select_strategy=None,
        num_additional_image_tokens=None,
    )
    prompt = load_checkpoint(folder, device="cpu", dtype="float32").prompt([user(IMAGE, "Hi")], [picture("odd")])
    assert prompt.images[0].image.tokens == 16


def test_onevision_sees_each_of_several_pictures_as_one_tile(tiny: dict[str, Path]) -> None:
    loaded = load_checkpoint(tiny["llava_onevision"], device="cpu", dtype="float32")
    alone = loaded.prompt([user(IMAGE, "Hi")], [picture("big")]).images[0].image
    together = loaded.prompt([user(IMAGE, IMAGE, "Hi")], [picture("big"), picture("big")]).images[0].image
    assert (alone.tokens, together.tokens) == (70, 17)
    assert alone.key != together.key


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_language_model_answers_without_pictures(tiny: dict[str, Path], family: str) -> None:
    loaded = load_checkpoint(tiny[family], device="cpu", dtype="float32")
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny[family])
    prompt = loaded.prompt([user("Hello there")], [])
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello there"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.text == text
    assert list(prompt.ids) == loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    model: Any = loaded.model
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([prompt.ids])).logits, plain(torch.tensor([prompt.ids])).logits)
    assert not loaded.info.accepts_images
    assert loaded.positions(prompt) is None
    with pytest.raises(BadRequest, match="reads text only"):
        loaded.prompt([user(IMAGE, "What?")], [picture("odd")])


def test_a_picture_no_processor_takes_is_a_bad_image(tiny: dict[str, Path]) -> None:
    from PIL import Image

    loaded = load_checkpoint(tiny["qwen2_5_vl"], device="cpu", dtype="float32")
    with pytest.raises(BadImage, match=r"picture 1 \(3000x5\) cannot be prepared"):
        loaded.prompt([user(IMAGE, "What?")], [Image.new("RGB", (3000, 5))])


def test_the_template_tells_what_ends_a_turn(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen3_vl")
    (folder / "generation_config.json").unlink()
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(folder, device="cpu", dtype="float32")
    assert loaded.tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.facts.eos_ids


@pytest.mark.parametrize("place", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
def test_a_chat_template_is_found_in_older_places_too(copy: Callable[[str], Path], place: str) -> None:
    folder = copy("llava")
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text("{}")
    edit(folder / place, chat_template=source)
    loaded = load_checkpoint(folder, device="cpu", dtype="float32")
    assert loaded.info.template == "chat template"
    assert place in loaded.info.template_reason
    assert loaded.prompt([user("Hi")], []).text == "USER: Hi ASSISTANT:"


def test_without_a_chat_template_one_is_chosen_and_the_reason_given(copy: Callable[[str], Path]) -> None:
    folder = copy("llava_next")
    (folder / "chat_template.jinja").unlink()
    loaded = load_checkpoint(folder, device="cpu", dtype="float32")
    assert loaded.info.template == "llava_v1"
    assert "nothing in the checkpoint says" in loaded.info.template_reason
    asked = load_checkpoint(folder, device="cpu", dtype="float32", conv_template="mistral_instruct")
    assert asked.prompt([user("Hi")], []).text == "[INST] Hi [/INST]"
    with pytest.raises(BadRequest, match="no conversation template is called 'nope'"):
        load_checkpoint(folder, device="cpu", dtype="float32", conv_template="nope")


def test_a_note_in_the_config_reaches_people(tiny: dict[str, Path]) -> None:
    info = load_checkpoint(tiny["llava"], device="cpu", dtype="float32").info
    assert "random" in info.note
    assert (info.name, info.context_length, info.device, info.dtype) == ("llava", 4096, "cpu", "float32")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_weight_missing_left_over_or_misshapen_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("llava")
    whole = (folder / "model.safetensors").read_bytes()
    names = list(load_file(folder / "model.safetensors"))
    norm = next(name for name in names if name.endswith(("language_model.norm.weight", "model.norm.weight")))
    for change, sentence in (
        (lambda tensors: tensors.pop(norm), r"it lacks: .*norm\.weight"),
        (lambda tensors: tensors.update({"model.stray": torch.ones(2)}), r"belong nowhere: .*stray"),
        (
            lambda tensors: tensors.update({norm: torch.ones(2)}),
            r"another shape .*norm\.weight \(\(2,\), not \(64,\)\)",
        ),
    ):
        (folder / "model.safetensors").write_bytes(whole)
        rewrite(folder, change)
        with pytest.raises(BadCheckpoint, match=sentence):
            load_checkpoint(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("llava", {"model_type": "nonesuch"}, "'nonesuch'.*Known are llava, llava_next"),
        (
            "llava",
            {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration.InternVLChatConfig"}},
            "code of its own, which is not run",
        ),
        ("llava", {"model_type": "aya_vision"}, "'aya_vision' model, which is not served here; known are llava"),
    ],
)
def test_what_is_not_served_is_said(
    copy: Callable[[str], Path], family: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = copy(family)
    edit(folder / "config.json", **changes)
    with pytest.raises(BadCheckpoint, match=f"(?s){sentence}"):
        load_checkpoint(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [("preprocessor_config.json", "no usable image processor"), ("tokenizer.json", "tokenizer of .* cannot be read")],
)
def test_a_lost_file_is_named(copy: Callable[[str], Path], lost: str, sentence: str) -> None:
    folder = copy("llava")
    (folder / lost).unlink()
    with pytest.raises(BadCheckpoint, match=sentence):
        load_checkpoint(folder, device="cpu", dtype="float32")
