"""Where a model's weights go and in which precision: device, dtype, 4 or 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from llava_core.checkpoints import memory
from llava_core.errors import BadRequest, MissingDependency

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# In bits below 16 the language model's layers alone; the rest is small and sensitive.
KEPT_WHOLE = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "mlp1", "image_newline", "lm_head")
_ROOM = 0.8


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; "auto" leaves the choice here."""

    device: str = "auto"
    dtype: str = "auto"
    bits: Literal[4, 8] | None = None


@dataclass(frozen=True)
class Placement:
    """What was chosen."""

    device: torch.device
    dtype: torch.dtype
    bits: Literal[4, 8] | None = None
    spread: bool = False
    """Over all visible GPUs, because one is too small."""

    @property
    def dtype_name(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.bits}-bit ({name})" if self.bits else name

    def load_arguments(self) -> dict[str, Any]:
        """Keywords for `from_pretrained`. MissingDependency without bitsandbytes where bits are asked for."""
        arguments: dict[str, Any] = {"dtype": self.dtype, "device_map": "auto" if self.spread else {"": self.device}}
        if self.bits:
            arguments["quantization_config"] = _bits_and_bytes(self.bits, self.dtype)
        return arguments


def place(wish: Wish, weights: int, *, saved_dtype: str | None = None) -> Placement:
    """Choose for a model of `weights` numbers. BadRequest for a device or dtype that is not there."""
    device = _device(wish.device)
    dtype = _dtype(wish.dtype, device, weights, saved_dtype)
    size = weights * (wish.bits / 8 if wish.bits else dtype.itemsize)
    spread = False
    if device.type == "cuda" and wish.device == "auto" and torch.cuda.device_count() > 1:
        spread = size > _ROOM * torch.cuda.get_device_properties(0).total_memory
    return Placement(device, dtype, wish.bits, spread)


def count_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as cause:
        raise BadRequest(f"there is no kind of device called {asked!r}; try cuda, cuda:1, mps or cpu") from cause
    if device.type == "cuda":
        index = device.index or 0
        if index >= torch.cuda.device_count():
            have = torch.cuda.device_count()
            raise BadRequest(
                f"device {asked!r} is not here: torch sees {have} CUDA devices; use --device cpu or another"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadRequest("device 'mps' is not here; use --device cpu")
    return device


def _dtype(asked: str, device: torch.device, weights: int, saved: str | None) -> torch.dtype:
    if asked != "auto":
        if asked not in DTYPES:
            raise BadRequest(f"there is no dtype {asked!r}; choose auto, {', '.join(DTYPES)}")
        return DTYPES[asked]
    if device.type == "cpu":
        free = memory.free_bytes()
        if free is not None and weights * 4 > _ROOM * free:
            log.warning(
                "%s of weights in float32 do not fit into %s of free memory; loading in bfloat16",
                memory.in_words(weights * 4),
                memory.in_words(free),
            )
            return torch.bfloat16
        return torch.float32
    halves = device.type != "cuda" or torch.cuda.is_bf16_supported()
    return torch.float16 if saved == "float16" or not halves else torch.bfloat16


def _bits_and_bytes(bits: Literal[4, 8], dtype: torch.dtype) -> Any:
    if find_spec("bitsandbytes") is None:
        raise MissingDependency(
            f"loading in {bits} bits needs the package bitsandbytes: pip install bitsandbytes==0.50.0"
        )
    from transformers import BitsAndBytesConfig

    kept: Sequence[str] = list(KEPT_WHOLE)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
