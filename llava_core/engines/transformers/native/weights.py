"""A decoder's weights as the kernel reads them: packed, one layer after the other, in place of the model's own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from llava_core.engines.transformers.native.arena import Arena

_DECODERS = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
_Long, _Pointer, _Float = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class CLayer(ctypes.Structure):
    """`Layer` of decoder.c."""

    _fields_ = tuple(
        (name, _Pointer)
        for name in ("qkv", "o", "gate", "up", "down", "qkv_bias", "norm_in", "norm_mid", "norm_q", "norm_k")
    )


class CModel(ctypes.Structure):
    """`Model` of decoder.c."""

    _fields_ = (
        *((name, _Long) for name in ("layers", "hidden", "inner", "heads", "kv_heads", "dim", "vocabulary", "window")),
        ("eps", _Float),
        ("scale", _Float),
        ("layer", ctypes.POINTER(CLayer)),
        ("norm_out", _Pointer),
        ("head", _Pointer),
    )


@dataclass(frozen=True)
class Packed:
    """What the kernel is given, and the tensors that it points into."""

    model: CModel
    alive: tuple[object, ...]


def unsuited(model: PreTrainedModel) -> str:
    """Why the kernel cannot compute this model; empty where it can. Looks at everything that the kernel assumes."""
    decoder: Any = model.get_decoder()
    config: Any = model.config.get_text_config()
    if type(decoder).__name__ not in _DECODERS:
        return f"its decoder is a {type(decoder).__name__}"
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        return f"it runs in {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    if config.hidden_act != "silu":
        return f"its layers use {config.hidden_act}"
    if _window(config) is None:
        return "its layers attend over different distances"
    for linear in _linears(model):
        if (
            type(linear) is not nn.Linear
            or type(linear.weight) is not nn.Parameter
            or linear.weight.device.type != "cpu"
        ):
            return "some of its layers are quantised, or elsewhere"
    attention = decoder.layers[0].self_attn
    hidden, dim, heads = config.hidden_size, attention.head_dim, config.num_attention_heads
    inner = config.intermediate_size
    if hidden % 32 or inner % 32 or dim % 32 or dim > 256 or (heads * dim) % 32:
        return "its widths are no multiples of 32"
    for layer in decoder.layers:
        spare = (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        if any(each.bias is not None for each in spare):
            return "layers have biases where the kernel has none"
    return "" if model.get_output_embeddings() is not None else "it has no output layer"


@torch.inference_mode()
def take_weights(model: PreTrainedModel, library: ctypes.CDLL) -> Packed:
    """Pack everything; the model's own layers are empty afterwards, except for an embedding that shares its weights."""
    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    config: Any = model.config.get_text_config()
    attention = decoder.layers[0].self_attn
    arena = Arena(cast(nn.Linear, linear) for linear in _linears(model))

    shared = cast(nn.Embedding, model.get_input_embeddings()).weight

    def packed(*linears: nn.Linear) -> int:
        return arena.pack(library, linears, keep=shared)

    def floats(tensor: torch.Tensor | None) -> int | None:
        return None if tensor is None else arena.floats(tensor)

    layers = (CLayer * len(decoder.layers))()
    for place, layer in zip(layers, decoder.layers, strict=True):
        own, mlp = layer.self_attn, layer.mlp
        parts = [own.q_proj, own.k_proj, own.v_proj]
        biases = [each.bias for each in parts]
        place.qkv_bias = None if biases[0] is None else floats(torch.cat(biases))
        place.qkv, place.o = packed(*parts), packed(own.o_proj)
        place.gate, place.up, place.down = packed(mlp.gate_proj), packed(mlp.up_proj), packed(mlp.down_proj)
        place.norm_in, place.norm_mid = (
            floats(layer.input_layernorm.weight),
            floats(layer.post_attention_layernorm.weight),
        )
        place.norm_q = floats(own.q_norm.weight) if hasattr(own, "q_norm") else None
        place.norm_k = floats(own.k_norm.weight) if hasattr(own, "k_norm") else None
    whole = CModel(
        layers=len(layers),
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        dim=attention.head_dim,
        vocabulary=head.weight.shape[0],
        window=_window(config) or 0,
        eps=decoder.norm.variance_epsilon,
        scale=attention.scaling,
        layer=cast(Any, ctypes.cast(layers, ctypes.POINTER(CLayer))),
        norm_out=floats(decoder.norm.weight),
        head=packed(head),
    )
    return Packed(whole, (layers, arena))


def _linears(model: PreTrainedModel) -> Iterator[nn.Module]:
    decoder: Any = model.get_decoder()
    for layer in decoder.layers:
        own, mlp = layer.self_attn, layer.mlp
        yield from (own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    yield cast(nn.Module, model.get_output_embeddings())


def _window(config: Any) -> int | None:
    """How far all layers look back, 0 without a bound; None where they differ."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if not kinds:
        return window or 0
    if set(kinds) == {"full_attention"}:
        return 0
    return (window or 0) if set(kinds) == {"sliding_attention"} else None
