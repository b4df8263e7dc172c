"""Original-format checkpoints give what the original code gave: prompts, ids, lengths, logits and greedy tokens."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.loaded import Checkpoint
from tests.checkpoints.originals import (
    NAMES,
    ORIGINALS,
    base_of,
    folded,
    greedy,
    messages_of,
    picture,
    pictures_of,
    records,
)

CASES = [
    pytest.param(name, record, id=f"{name}-{index}") for name in NAMES for index, record in enumerate(records(name))
]


@functools.lru_cache(maxsize=len(NAMES))
def loaded(name: str) -> Checkpoint:
    return load_checkpoint(ORIGINALS / name, base=base_of(name), device="cpu", dtype="float32")


@pytest.mark.parametrize(("name", "record"), CASES)
def test_a_recorded_chat_is_answered_as_the_original_answered_it(name: str, record: dict[str, Any]) -> None:
    checkpoint = loaded(name)
    assert checkpoint.info.template == record["template"], "chosen without --conv-template"
    prompt = checkpoint.prompt(messages_of(record), pictures_of(record))
    # Start and end tokens stand in the text here; the original puts them in after rendering.
    assert prompt.text.replace("<im_start>", "").replace("<im_end>", "") == record["prompt"]
    assert folded(prompt) == record["input_ids"]
    assert len(prompt.ids) == record["prefill_length"]
    last, tokens = greedy(checkpoint, prompt, len(record["greedy_tokens"]))
    recorded = torch.tensor(record["last_logits"])
    assert (last[: len(recorded)] - recorded).abs().max() < 2e-3
    assert tokens == record["greedy_tokens"]


def test_there_are_seven_kinds() -> None:
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", ["llava-7b-v0", "llava-v1.5-7b", "llava-v1.6-34b"])
def test_pictures_encoded_together_are_as_encoded_alone(name: str) -> None:
    checkpoint = loaded(name)
    assert checkpoint.vision is not None
    prepared = [checkpoint.vision.prepare(picture(each), alone=True) for each in ("wide", "big", "tall", "odd")]
    together = checkpoint.encode(prepared)
    for image, rows in zip(prepared, together, strict=True):
        (alone,) = checkpoint.encode([image])
        assert rows.shape == alone.shape == (image.tokens, 48)
        assert torch.allclose(rows, alone, atol=1e-5)


def test_a_key_tells_pictures_and_preparations_apart() -> None:
    padding, tiling = loaded("llava-v1.5-7b").vision, loaded("llava-v1.6-vicuna-7b").vision
    assert padding is not None
    assert tiling is not None
    first = padding.prepare(picture("big"), alone=True)
    assert first.key == padding.prepare(picture("big"), alone=False).key
    assert first.key != padding.prepare(picture("big").transpose(0), alone=True).key
    assert first.key != tiling.prepare(picture("big"), alone=True).key


def test_what_was_never_trained_is_never_said() -> None:
    checkpoint = loaded("llava-v1.5-7b")
    rows: int = checkpoint.model.get_output_embeddings().weight.shape[0]
    assert checkpoint.facts.image_token_id == 800
    assert checkpoint.facts.forbidden_ids == frozenset(range(800, rows))
    weights = checkpoint.model.get_output_embeddings().weight
    # Even an engine that forgot to forbid them would not say them: their logit is the mean of the others'.
    hidden = torch.randn(64, weights.shape[1])
    logits = hidden @ weights.T
    assert (logits[:, 800:].max(1).values < logits[:, :800].max(1).values).all()


def test_an_answer_ends_where_the_template_says() -> None:
    assert loaded("llava-7b-v0").facts.stop_strings == ("###",)
    assert loaded("llava-v1.6-34b").facts.stop_strings == ("<|im_end|>",)
    plain = loaded("llava-v1.5-7b").facts
    assert plain.stop_strings == ()
    assert plain.eos_ids == {2}


def test_the_template_that_is_asked_for_is_taken() -> None:
    checkpoint = load_checkpoint(
        ORIGINALS / "llava-v1.5-7b", conv_template="llava_llama_2", name="mine", device="cpu", dtype="float32"
    )
    assert checkpoint.info.template == "llava_llama_2"
    assert "--conv-template" in checkpoint.info.template_reason
    assert checkpoint.info.name == "mine"
    assert checkpoint.info.context_length == 1024


def test_too_few_or_too_many_pictures_are_refused() -> None:
    from llava_core.errors import BadRequest
    from llava_core.types import user

    with pytest.raises(BadRequest, match="name 0 pictures, but 1"):
        loaded("llava-v1.5-7b").prompt([user("Hello")], [picture("odd")])
