"""Where a model's weights go and in which precision: device, dtype, 4 or 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from llava_core.checkpoints import memory, precision
from llava_core.checkpoints.precision import PACKAGES, Quantize
from llava_core.errors import BadRequest, MissingDependency
from llava_core.machine import memory as memory_of_machine

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
    quantize: Quantize | None = None


@dataclass(frozen=True)
class Placement:
    """What was chosen."""

    device: torch.device
    dtype: torch.dtype
    quantize: Quantize | None = None
    spread: bool = False
    """Over all visible GPUs, because one is too small."""

    @property
    def dtype_name(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.quantize} ({name})" if self.quantize else name

    def load_arguments(self) -> dict[str, Any]:
        """Keywords for `from_pretrained`. MissingDependency without the package that quantises."""
        arguments: dict[str, Any] = {"dtype": self.dtype, "device_map": "auto" if self.spread else {"": self.device}}
        if self.quantize:
            arguments["quantization_config"] = _quantization(self.quantize, self.dtype)
        return arguments


def place(wish: Wish, model: nn.Module, *, saved_dtype: str | None = None) -> Placement:
    """Choose for a model, given without its weights. BadRequest for what is not there or does not go together."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    device = _device(wish)
    if wish.quantize and device.type not in PACKAGES[wish.quantize].devices:
        raise BadRequest(
            f"{wish.quantize} does not run on {device.type}; leave the quantisation away or use --device cpu",
            param="quantize",
        )
    dtype = _dtype(wish, device, weights, saved_dtype)
    if wish.quantize == "nf4" and device.type == "cpu":
        _check_widths(model)
    size = weights * (PACKAGES[wish.quantize].bits / 8 if wish.quantize else dtype.itemsize)
    spread = False
    if device.type == "cuda" and wish.device == "auto" and torch.cuda.device_count() > 1:
        spread = size > _ROOM * torch.cuda.get_device_properties(0).total_memory
    return Placement(device, dtype, wish.quantize, spread)


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself, so that half the bytes take half the time."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    known = torch.cpu.get_capabilities()
    if known.get("architecture") not in ("x86_64", "AMD64"):
        # On ARM the answer above is about its own instructions.
        return True
    # Here it only says that bfloat16 can be emulated.
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def _device(wish: Wish) -> torch.device:
    asked = wish.device
    if asked == "auto":
        return _best_device(wish.quantize)
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


def _best_device(quantize: Quantize | None) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        if quantize is None or "mps" in PACKAGES[quantize].devices:
            return torch.device("mps")
        log.warning("%s does not run on mps; the model goes on the CPU", quantize)
    return torch.device("cpu")


def _dtype(wish: Wish, device: torch.device, weights: int, saved: str | None) -> torch.dtype:
    if wish.dtype != "auto":
        if wish.dtype not in DTYPES:
            raise BadRequest(f"there is no dtype {wish.dtype!r}; choose {', '.join(precision.DTYPES)}", param="dtype")
        return DTYPES[wish.dtype]
    if device.type == "cpu":
        if fast_bfloat16():
            return torch.bfloat16
        free = memory_of_machine().free
        size = weights * PACKAGES[wish.quantize].bits // 8 if wish.quantize else weights * 4
        if size > _ROOM * free:
            log.warning(
                "%s of weights do not fit into %s of free memory; loading in bfloat16",
                memory.in_words(size),
                memory.in_words(free),
            )
            return torch.bfloat16
        return torch.float32
    if device.type == "mps":
        # Not every Mac has bfloat16; what was trained in it may overflow in float16, so float32 where that fits.
        fits = weights * 4 <= _ROOM * memory_of_machine().free
        return torch.float32 if fits and saved != "float16" else torch.float16
    # Eight-bit products of bitsandbytes are computed in float16 whatever is asked for.
    brief = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.float16 if saved == "float16" or brief or wish.quantize == "int8" else torch.bfloat16


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


def _quantization(kind: Quantize, dtype: torch.dtype) -> Any:
    package = PACKAGES[kind]
    if find_spec(package.name) is None:
        raise MissingDependency(f"quantising to {kind} needs the package {package.name}: pip install {package.pinned}")
    kept: Sequence[str] = list(KEPT_WHOLE)
    if kind == "int8-torchao":
        from transformers import TorchAoConfig

        # By name: it is installed only where it is used, since its import slows every start.
        weight_only: Any = import_module("torchao.quantization").Int8WeightOnlyConfig
        return TorchAoConfig(weight_only(), modules_to_not_convert=list(kept))
    from transformers import BitsAndBytesConfig

    # It says at every product that numbers are cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
