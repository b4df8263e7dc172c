"""Facts every family shares: what ends an answer, how long a chat may be, what people are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llava_core.checkpoints.placement import Placement
from llava_core.types import ModelInfo

# Keys of our own in config.json: a word to people about the model, and strings that end its answers.
NOTE_KEY = "llava_serve_note"
STOP_KEY = "llava_serve_stop"
_STRETCHED = ("linear", "dynamic", "yarn", "longrope")


def answer_ends(
    tokenizer: Any, configured: Iterable[Any], *stops: str | None
) -> tuple[frozenset[int], tuple[str, ...]]:
    """Token ids and strings that end an answer; a stop that is one token of the tokenizer counts as its id."""
    ends: set[int] = set()
    for value in (*configured, tokenizer.eos_token_id):
        several: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
        ends.update(int(one) for one in several if one is not None)
    known: Mapping[str, int] = tokenizer.get_added_vocab()
    given = dict.fromkeys(stop for stop in stops if stop)
    ends.update(known[stop] for stop in given if stop in known)
    return frozenset(ends), tuple(stop for stop in given if stop not in known)


def context_length(text_config: Any, config: Mapping[str, Any] | None = None) -> int:
    """Tokens a chat may have, its answer included: the model's positions, stretched or cut as config.json says."""
    positions = int(getattr(text_config, "max_position_embeddings", None) or 2048)
    rope = getattr(text_config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if kind in _STRETCHED and factor:
        trained = int(rope.get("original_max_position_embeddings") or positions)
        positions = max(positions, int(trained * float(factor)))
    limits = [positions]
    # Beyond its window a model of sliding attention no longer sees the start of a chat, its picture first of all.
    if _slides(text_config):
        limits.append(int(text_config.sliding_window))
    trained_on = (config or {}).get("tokenizer_model_max_length")
    if isinstance(trained_on, int) and trained_on > 0:
        limits.append(trained_on)
    return min(limits)


def _slides(text_config: Any) -> bool:
    if not getattr(text_config, "sliding_window", None):
        return False
    layers = getattr(text_config, "layer_types", None)
    if layers and "full_attention" in layers:
        return False
    return bool(getattr(text_config, "use_sliding_window", True))


def model_info(
    name: str,
    config: Mapping[str, Any],
    placement: Placement,
    *,
    context: int,
    template: str,
    reason: str,
    images: bool,
) -> ModelInfo:
    return ModelInfo(
        name=name,
        engine="transformers",
        context_length=context,
        accepts_images=images,
        device=str(placement.device) if not placement.spread else "cuda (several)",
        dtype=placement.dtype_name,
        template=template,
        template_reason=reason,
        note=str(config.get(NOTE_KEY) or ""),
    )
