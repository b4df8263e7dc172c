"""Attention over samples laid end to end in one row: each token sees its own sample only, and nothing is padding.

On CUDA one ragged FlashAttention call serves all samples. On a CPU torch's fused attention is slow to differentiate in
bfloat16 (four times the plain products at 65 tokens), so samples of like length are stacked and multiplied plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

NAME = "llava_samples"
_STACKED_UP_TO = 768
"""Longer samples go through fused attention, whose memory does not grow with the square of their length."""
_WASTE = 1.25
"""Samples are stacked while the longest has at most so many times the tokens of the shortest."""


@dataclass(frozen=True)
class Stack:
    """Samples of like length: `rows` are the row's positions (samples, longest), cut ones repeated; `kept` are which
    of those are real, as positions in the flattened stack, and `places` where they stand in the row."""

    rows: torch.Tensor
    kept: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """How a row's samples are attended to; made once for all layers."""

    bounds: torch.Tensor
    longest: int
    stacks: tuple[Stack, ...] = ()
    alone: tuple[tuple[int, int], ...] = ()


def lay_out(bounds: torch.Tensor, longest: int) -> Layout:
    """`bounds` are where samples begin in the row, and its end."""
    if bounds.is_cuda:
        return Layout(bounds, longest)
    spans = sorted(pairwise(bounds.tolist()), key=lambda span: span[1] - span[0])
    alone = tuple((begin, end) for begin, end in spans if end - begin > _STACKED_UP_TO)
    stacks: list[Stack] = []
    some: list[tuple[int, int]] = []
    for begin, end in spans[: len(spans) - len(alone)]:
        if some and end - begin > _WASTE * (some[0][1] - some[0][0]):
            stacks.append(_stack(some))
            some = []
        some.append((begin, end))
    if some:
        stacks.append(_stack(some))
    return Layout(bounds, longest, tuple(stacks), alone)


def use_samples_attention(model: PreTrainedModel) -> bool:
    """Let the language model attend sample by sample. False where its attention cannot be replaced, or is windowed:
    such a model trains on padded batches."""
    text: Any = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    if windowed or kinds - {"full_attention"} or getattr(text, "attn_logit_softcapping", None):
        return False
    AttentionInterface.register(NAME, samples_attention)
    others = {name: "sdpa" for name in model.config.sub_configs if name != "text_config"}
    model.set_attn_implementation({"": NAME, "text_config": NAME, **others})
    return text._attn_implementation == NAME


def samples_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature. Without a layout it is one chat, whose newest tokens are in `query`.
    (1, heads, tokens, dim) -> (1, tokens, heads, dim)"""
    del module, attention_mask
    grouped = query.shape[1] != key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if layout is None:
        whole = query.shape[2] > 1
        out = F.scaled_dot_product_attention(query, key, value, is_causal=whole, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2), None
    if query.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        # Where the language model learns, its weights and positions are float32, and turning makes queries and keys
        # so; values stay as autocast multiplied them.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return _varlen(query, key, value, layout, scale, grouped), None
    alone = layout.alone or (() if layout.stacks else tuple(pairwise(layout.bounds.tolist())))
    found = [_stacked(query, key, value, stack, scale, dropout) for stack in layout.stacks]
    places = [stack.places for stack in layout.stacks]
    for begin, end in alone:
        one = (each[:, :, begin:end] for each in (query, key, value))
        out = F.scaled_dot_product_attention(*one, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped)
        found.append(out[0].transpose(0, 1))
        places.append(torch.arange(begin, end, device=query.device))
    if len(found) == 1 and len(layout.stacks) == 1 and _in_order(layout.stacks[0]):
        return found[0][None], None
    row = torch.cat(found)
    return torch.empty_like(row).index_copy(0, torch.cat(places), row)[None], None


def _stack(spans: Sequence[tuple[int, int]]) -> Stack:
    spans = sorted(spans)
    longest = max(end - begin for begin, end in spans)
    steps = torch.arange(longest)
    begins = torch.tensor([begin for begin, _ in spans])[:, None]
    ends = torch.tensor([end for _, end in spans])[:, None]
    rows = begins + steps
    real = rows < ends
    mask = torch.full((longest, longest), -torch.inf).triu(1)
    return Stack(torch.minimum(rows, ends - 1), real.flatten().nonzero()[:, 0], rows[real], mask)


def _in_order(stack: Stack) -> bool:
    return bool(len(stack.places) == 0 or (stack.places.diff() == 1).all())


def _stacked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stack: Stack, scale: float, dropout: float
) -> torch.Tensor:
    """Plain products over a stack; what was cut off comes after each sample's end, where no real token looks.
    -> (real tokens, heads, dim)"""
    samples, longest = stack.rows.shape
    kv_heads, dim = key.shape[1], key.shape[3]
    shared = query.shape[1] // kv_heads
    flat = stack.rows.flatten()

    def taken(each: torch.Tensor) -> torch.Tensor:  # (1, heads, tokens, dim) -> (heads, samples, longest, dim)
        return each[0].index_select(1, flat).view(each.shape[1], samples, longest, dim)

    # Query heads that share a key head lie one under the other: (kv heads x samples, shared x longest, dim)
    asked = taken(query).view(kv_heads, shared, samples, longest, dim).transpose(1, 2)
    asked = asked.reshape(kv_heads * samples, shared * longest, dim)
    keys = taken(key).reshape(kv_heads * samples, longest, dim)
    values = taken(value).reshape(kv_heads * samples, longest, dim)
    mask = stack.mask.to(asked.dtype).repeat(shared, 1)
    scores = torch.baddbmm(mask, asked, keys.transpose(1, 2), alpha=scale).softmax(-1)
    if dropout:
        scores = F.dropout(scores, dropout)
    out = torch.bmm(scores, values).view(kv_heads, samples, shared, longest, dim)
    out = out.permute(1, 3, 0, 2, 4).reshape(samples * longest, kv_heads * shared, dim)
    return out if len(stack.kept) == len(out) else out.index_select(0, stack.kept)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float, grouped: bool
) -> torch.Tensor:
    """One FlashAttention call for all samples."""
    from torch.nn.attention.varlen import varlen_attn

    asked, keys, values = (each[0].transpose(0, 1) for each in (query, key, value))
    if grouped:  # the kernel's backward pass wants as many heads on either side
        copies = query.shape[1] // key.shape[1]
        keys, values = keys.repeat_interleave(copies, dim=1), values.repeat_interleave(copies, dim=1)
    bounds, longest = layout.bounds, layout.longest
    out: Any = varlen_attn(asked, keys, values, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0))
    return out[None]
