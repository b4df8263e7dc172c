"""One pass of the converted tokenizer gives what the original's piece-by-piece tokenising gives, for odd texts too."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from llava_core.checkpoints.converted_tokenizer import converted_tokenizer
from llava_core.checkpoints.jinja_template import chat_template
from llava_core.checkpoints.original_tokenizer import load_original_tokenizer
from llava_core.checkpoints.prompting import Prompter
from llava_core.conversation import TEMPLATES
from llava_core.types import Message, assistant, user
from tests.checkpoints.originals import IMAGE, ORIGINALS

WORDS = [
    "Hello",
    " world",
    "  two",
    "\n",
    "line\n\n",
    "tab\t",
    "What?",
    "日本",
    "é",
    "🙂",
    " ",
    "x",
    "###",
    "ﬁ",
    "\u00a0",
]
WRAP = ("<im_start>", "<im_end>")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The recorded tokenizer, as it is or with the normaliser that Llama's own has: none."""
    kind, legacy = request.param
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ORIGINALS / "vicuna-base" / name, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "plain":
        model: Any = import_protobuf().ModelProto.FromString((tmp_path / "tokenizer.model").read_bytes())
        model.normalizer_spec.name = "identity"
        model.normalizer_spec.precompiled_charsmap = b""
        model.normalizer_spec.remove_extra_whitespaces = False
        (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    return tmp_path


def chats(dice: random.Random) -> list[list[Message]]:
    def text() -> str:
        return "".join(dice.choices(WORDS, k=dice.randint(1, 8)))

    def question() -> Message:
        parts = [text() if dice.random() < 0.6 else IMAGE for _ in range(dice.randint(1, 4))]
        return user(*parts)

    made: list[list[Message]] = []
    for _ in range(60):
        chat = [question()]
        for _ in range(dice.randint(0, 2)):
            chat += [assistant(text()), question()]
        made.append(chat)
    return made


@pytest.mark.parametrize("template", ["llava_v0", "llava_v1", "mistral_instruct", "chatml_direct", "llava_llama_2"])
@pytest.mark.parametrize("model_type", ["llava_llama", "llava_mistral"])
@pytest.mark.parametrize(
    "folder",
    [("recorded", False), ("recorded", True), ("plain", False), ("plain", True)],
    indirect=True,
    ids=lambda value: f"{value[0]}{' legacy' if value[1] else ''}",
)
def test_ids_are_equal(folder: Path, model_type: str, template: str, tmp_path: Path) -> None:
    original = load_original_tokenizer(folder, model_type=model_type)
    wrap = WRAP if template == "llava_v0" else ("", "")
    original.tokenizer.add_tokens([mark for mark in wrap if mark], special_tokens=True)
    placeholder = len(original.tokenizer)
    prompter = Prompter.for_template(
        original.tokenizer,
        TEMPLATES[template],
        placeholder_id=placeholder,
        prefix=original.prefix,
        image_wrap=wrap,
    )
    source = chat_template(TEMPLATES[template], "<image>".join(wrap) if wrap[0] else "<image>")
    converted_tokenizer(original, placeholder, source).save_pretrained(tmp_path / "out")
    converted: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    for chat in chats(random.Random(7)):
        lengths = [1] * sum(len(message.images) for message in chat)
        want = prompter.tokenize(chat, lengths)
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
        text = converted.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text == want.text
        assert converted(text)["input_ids"] == list(want.ids), repr(text)
