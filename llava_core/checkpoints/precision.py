"""The names of precisions: what weights are kept and computed in, told without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from llava_core.errors import BadRequest

DTYPES = ("auto", "float32", "bfloat16", "float16")
Quantize = Literal["int8", "nf4", "int8-torchao"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)


@dataclass(frozen=True)
class Package:
    """What a quantisation needs installed, and where it runs."""

    name: str
    pinned: str
    bits: int
    devices: tuple[str, ...]


PACKAGES: dict[Quantize, Package] = {
    "int8": Package("bitsandbytes", "bitsandbytes==0.50.0", 8, ("cuda", "cpu", "xpu")),
    "nf4": Package("bitsandbytes", "bitsandbytes==0.50.0", 4, ("cuda", "cpu", "xpu")),
    "int8-torchao": Package("torchao", "torchao==0.18.0", 8, ("cuda", "cpu", "xpu")),
}


def one_quantize(asked: str | None, *, load_4bit: bool = False, load_8bit: bool = False) -> Quantize | None:
    """The one that is meant by the ways to ask for it. BadRequest for two at once and for one that does not exist."""
    if asked is not None and asked not in QUANTIZE:
        raise BadRequest(f"there is no quantisation {asked!r}; choose {', '.join(QUANTIZE)}", param="quantize")
    ways = {
        f"--quantize {asked}": asked,
        "--load-4bit": "nf4" if load_4bit else None,
        "--load-8bit": "int8" if load_8bit else None,
    }
    given = {way: kind for way, kind in ways.items() if kind}
    if len(set(given.values())) > 1:
        raise BadRequest(f"{' and '.join(given)} exclude each other; give one", param="quantize")
    return cast("Quantize | None", next(iter(given.values()), None))
