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
# Below 16 bits go the language model's layers alone; the rest is small and sensitive.
KEPT_WHOLE = ("model.vision_tower", "model.visual", "model.multi_modal_projector", "lm_head")
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


def place(wish: Wish, model: nn.Module, *, saved_dtype: str | None = None) -> Placement:
    """Choose for a model, given without its weights. BadRequest for what is not there or does not go together."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    device = _device(wish.device)
    dtype = _dtype(wish, device, weights, saved_dtype)
    if wish.bits == 4 and device.type == "cpu":
        _check_widths(model)
    size = weights * (wish.bits / 8 if wish.bits else dtype.itemsize)
    spread = False
    if device.type == "cuda" and wish.device == "auto" and torch.cuda.device_count() > 1:
        spread = size > _ROOM * torch.cuda.get_device_properties(0).total_memory
    return Placement(device, dtype, wish.bits, spread)


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


def _dtype(wish: Wish, device: torch.device, weights: int, saved: str | None) -> torch.dtype:
    if wish.dtype != "auto":
        if wish.dtype not in DTYPES:
            raise BadRequest(f"there is no dtype {wish.dtype!r}; choose auto, {', '.join(DTYPES)}")
        return DTYPES[wish.dtype]
    if device.type == "cpu":
        free = memory.free_bytes()
        size = weights * 4 if wish.bits is None else weights * wish.bits // 8
        if free is not None and size > _ROOM * free:
            log.warning(
                "%s of weights do not fit into %s of free memory; loading in bfloat16",
                memory.in_words(size),
                memory.in_words(free),
            )
            return torch.bfloat16
        return torch.float32
    # Eight-bit products are computed in float16 whatever is asked for.
    brief = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.float16 if saved == "float16" or brief or wish.bits == 8 else torch.bfloat16


def _check_widths(model: nn.Module) -> None:
    """On a CPU, 4-bit weights are packed in blocks of 32 rows by 64 columns."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.startswith(KEPT_WHOLE):
            continue
        if module.in_features % 64 or module.out_features % 32:
            raise BadRequest(
                f"this model cannot be loaded in 4 bits on a CPU: {name} is {module.out_features} by "
                f"{module.in_features}, no multiple of 32 by 64; take 8 bits, or none"
            )


def _bits_and_bytes(bits: Literal[4, 8], dtype: torch.dtype) -> Any:
    if find_spec("bitsandbytes") is None:
        raise MissingDependency(
            f"loading in {bits} bits needs the package bitsandbytes: pip install bitsandbytes==0.50.0"
        )
    from transformers import BitsAndBytesConfig

    # It says at every product that numbers are cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
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
