"""The recorded original-format checkpoints, and a plain greedy decoder over whatever `load_checkpoint` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_core.checkpoints.base import LoadedCheckpoint, Prompt
from llava_core.types import ImagePart, Message, assistant, user

ORIGINALS = Path(__file__).parent.parent / "fixtures" / "original_checkpoints"
NAMES = tuple(sorted(path.parent.name for path in ORIGINALS.glob("*/golden.json")))
IMAGE = ImagePart("data:image/png;base64,")
PLACEHOLDER = -200


def base_of(name: str) -> str | None:
    """What `--model-base` must say; the adapter's own config names its base."""
    return str(ORIGINALS / "vicuna-base") if "pretrain" in name else None


def records(name: str) -> list[dict[str, Any]]:
    return json.loads((ORIGINALS / name / "golden.json").read_text())["records"]


def messages_of(record: Mapping[str, Any]) -> list[Message]:
    """The recorded turns as messages: `<image>` on a line of its own becomes an image part there."""
    messages: list[Message] = []
    for question, answer in record["turns"]:
        messages.append(user(*(IMAGE if line == "<image>" else line for line in question.split("\n"))))
        if answer is not None:
            messages.append(assistant(answer))
    return messages


def pictures_of(record: Mapping[str, Any]) -> list[Image.Image]:
    return [picture(name) for name in record["images"]]


def picture(name: str) -> Image.Image:
    return Image.open(ORIGINALS / f"{name}.png").convert("RGB")


def folded(prompt: Prompt) -> list[int]:
    """The ids with each picture's placeholders folded into the one mark the original has."""
    ids = list(prompt.ids)
    for placed in reversed(prompt.images):
        ids[placed.start : placed.start + placed.image.tokens] = [PLACEHOLDER]
    return ids


@torch.inference_mode()
def greedy(loaded: LoadedCheckpoint, prompt: Prompt, count: int) -> tuple[torch.Tensor, list[int]]:
    """The logits at the prompt's end and the `count` likeliest tokens after it, ends of text not honoured."""
    model: Any = loaded.model
    features = loaded.encode([placed.image for placed in prompt.images])
    given = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}} if features else {}
    out = model(input_ids=torch.tensor([prompt.ids]), use_cache=True, **given)
    last = out.logits[0, -1].float()
    forbidden = sorted(loaded.facts.forbidden_ids)
    tokens: list[int] = []
    logits = last.clone()
    while True:
        logits[forbidden] = -torch.inf
        tokens.append(int(logits.argmax()))
        if len(tokens) == count:
            return last, tokens
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        logits = out.logits[0, -1].float()
