"""What the exactness tests share: tiny checkpoints of every family, and greedy ids as `generate` gives them."""

from __future__ import annotations

import functools
import io
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava_core.checkpoints.base import Prompt
from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.loaded import Checkpoint
from llava_core.checkpoints.tiny import FAMILIES, build_tiny
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.images import to_data_url
from llava_core.types import ImagePart, Message, Request, Sampling

PICTURE_FAMILIES = tuple(family for family in FAMILIES if family not in ("llama", "qwen2"))
__all__ = ["FAMILIES", "PICTURE_FAMILIES", "greedy", "load", "picture", "reference", "token_ids"]


@functools.cache
def folder(family: str) -> Path:
    return build_tiny(family, Path(tempfile.mkdtemp(prefix="tiny-")) / family, seed=3)


def load(family: str) -> Checkpoint:
    """A fresh copy each time: an engine changes the attention of the model it is given."""
    return load_checkpoint(folder(family), device="cpu", dtype="float32")


@functools.cache
def plain(family: str) -> Checkpoint:
    """The copy that `generate` runs on."""
    return load(family)


def picture(seed: int, width: int = 48, height: int = 40) -> ImagePart:
    pixels = random.Random(seed).randbytes(width * height * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(buffer, "PNG")
    return ImagePart(to_data_url(buffer.getvalue()))


def greedy(*messages: Message, tokens: int = 12, owner: str = "") -> Request:
    """A request that answers with exactly `tokens` ids and reports them."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=0)
    return Request(model="tiny", messages=messages, sampling=sampling, owner=owner)


async def token_ids(engine: TransformersEngine, request: Request) -> list[int]:
    return [logprob.token_id async for chunk in engine.generate(request) for logprob in chunk.logprobs]


def reference(family: str, prompt: Prompt, tokens: int = 12, **options: float) -> list[int]:
    """What transformers' own `generate` answers to the same ids and pictures; asked once for each."""
    key = (family, prompt.ids, tuple(placed.image.key for placed in prompt.images), tuple(options.items()))
    if len(_answers.get(key, ())) < tokens:
        _answers[key] = _generate(family, prompt, tokens, **options)
    return _answers[key][:tokens]


_answers: dict[tuple[object, ...], list[int]] = {}


def _generate(family: str, prompt: Prompt, tokens: int, **options: float) -> list[int]:
    loaded = plain(family)
    never = sorted({*loaded.facts.eos_ids, *loaded.facts.forbidden_ids, _placeholder(loaded)} - {-1})
    vocabulary = loaded.model.config.get_text_config().vocab_size
    inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt.ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if prompt.images:
        inputs |= _pictures([dict(placed.image.inputs) for placed in prompt.images])
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == _placeholder(loaded)).int()
    if family == "llava_onevision" and prompt.images:
        inputs["batch_num_images"] = [len(prompt.images)]
    model: Any = loaded.model
    _forget_positions(loaded.model)
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=[token for token in never if token < vocabulary],
        pad_token_id=0,
        **options,
    )
    return out[0, len(prompt.ids) :].tolist()


def _placeholder(loaded: Checkpoint) -> int:
    return -1 if loaded.facts.image_token_id is None else loaded.facts.image_token_id


def _pictures(inputs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of several pictures as one, tiles padded where their numbers differ."""
    joined: dict[str, torch.Tensor] = {}
    for name in inputs[0]:
        tensors = [one[name] for one in inputs]
        if name == "pixel_values" and tensors[0].ndim == 5:
            most = max(tensor.shape[1] for tensor in tensors)
            tensors = [
                torch.cat((tensor, tensor.new_zeros(1, most - tensor.shape[1], *tensor.shape[2:])), dim=1)
                for tensor in tensors
            ]
        joined[name] = torch.cat(tensors)
    return joined


def _forget_positions(model: PreTrainedModel) -> None:
    """Qwen-VL keeps the last call's rotary offset on the model."""
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None  # pyright: ignore[reportAttributeAccessIssue]
