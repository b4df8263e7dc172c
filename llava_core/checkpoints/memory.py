"""Memory: what a model needs at a precision. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 1024**3
# Four-bit weights carry a scale per block of 64 weights, itself kept in 8 bits.
_BITS_STORED = {16: 16.0, 8: 8.1, 4: 4.2}


@dataclass(frozen=True)
class Part:
    """A part of a model with its weight count. `quantises` when 4- and 8-bit loading shrinks it."""

    name: str
    weights: int
    quantises: bool = False


@dataclass(frozen=True)
class KvShape:
    """What decides the size of the key-value cache of one token."""

    layers: int
    heads: int
    head_size: int

    def bytes_per_token(self, bytes_per_number: int = 2) -> int:
        return 2 * self.layers * self.heads * self.head_size * bytes_per_number


def kv_shape(text_config: Any) -> KvShape:
    """Read from a transformers language-model config."""
    heads = int(text_config.num_attention_heads)
    size = getattr(text_config, "head_dim", None) or int(text_config.hidden_size) // heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    return KvShape(int(text_config.num_hidden_layers), int(kv_heads), int(size))


def weight_bytes(parts: tuple[Part, ...], bits: int) -> int:
    """Memory of the weights at 32, 16, 8 or 4 bits; what does not quantise stays at 16."""
    if bits >= 16:
        return sum(part.weights for part in parts) * bits // 8
    stored = _BITS_STORED[bits]
    return sum(int(part.weights * (stored if part.quantises else 16) / 8) for part in parts)


def in_words(size: float) -> str:
    for unit, scale in (("GiB", GIB), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"
