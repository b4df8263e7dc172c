"""Attention over packed requests: the function transformers calls, and what a backend of it must do.

The new tokens of all requests stand end to end in one row; each request has its own contiguous memory of keys and
values (a region). A backend owns that memory and knows the fastest way to attend in it on its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel

from llava_core.errors import BadCheckpoint

RAGGED = "ragged"


class Region(Protocol):
    """Memory for the keys and values of one request; `tokens` are reserved and counted."""

    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Span:
    """Part of a packed step: `count` new tokens of one request, at `start` of the row, after `past` known ones."""

    region: Region
    start: int
    count: int
    past: int


class AttentionStep(Protocol):
    """One forward pass: called once per layer."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """`query` (1, heads, T, dim), `key` and `value` (1, kv heads, T, dim) -> (1, T, heads, dim)."""
        ...


class AttentionBackend(Protocol):
    """Keys, values and attention on one device; used by the model thread only."""

    @property
    def bytes_per_token(self) -> int: ...

    @property
    def total_tokens(self) -> int:
        """Tokens that all regions together may reserve."""
        ...

    def allocate(self, tokens: int) -> Region | None:
        """A region, or None when no contiguous room is left."""
        ...

    def resize(self, region: Region, tokens: int) -> bool:
        """Grow or shrink in place, keeping what is stored; False when it cannot grow here."""
        ...

    def copy(self, source: Region, target: Region, tokens: int) -> None:
        """Copy the first `tokens` of every layer."""
        ...

    def release(self, region: Region) -> None: ...

    def keys(self, region: Region, layer: int, tokens: int) -> torch.Tensor:
        """Of the first `tokens`: (kv heads, tokens, dim). It holds until the next pass."""
        ...

    def begin(self, spans: Sequence[Span]) -> AttentionStep: ...


@dataclass(frozen=True)
class KVShape:
    """What keys and values of a model look like."""

    layers: int
    heads: int
    kv_heads: int
    dim: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> KVShape:
        config: Any = model.config.get_text_config()
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, heads, kv_heads, dim)


def use_ragged_attention(model: PreTrainedModel) -> None:
    """Make the language model attend through our backends; its vision tower keeps SDPA.

    No mask function is registered under the name, so transformers builds no mask for the packed row.
    """
    AttentionInterface.register(RAGGED, ragged_attention)
    sub_configs: dict[str, Any] = getattr(model.config, "sub_configs", {})
    if "text_config" in sub_configs:
        others = {name: "sdpa" for name in sub_configs if name != "text_config"}
        model.set_attn_implementation({"": RAGGED, "text_config": RAGGED, **others})
    else:
        model.set_attn_implementation(RAGGED)
    if model.config.get_text_config()._attn_implementation != RAGGED:
        raise BadCheckpoint(f"{type(model).__name__} does not let its attention be replaced; it cannot be batched here")


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    batch: AttentionStep | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature over our backends."""
    if batch is None:
        raise RuntimeError("a model prepared for packed batches was called by itself; call it through the engine")
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("soft-capped logits and attention sinks are not computed here")
    layer: Any = module.layer_idx
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return batch.attend(layer, query, key, value, scale, sliding_window), None
