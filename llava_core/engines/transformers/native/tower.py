"""Lets the kernel compute the layers of a CLIP vision tower, in place of their own forward."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from llava_core.engines.transformers.native.arena import Arena
from llava_core.engines.transformers.native.scratch import Scratch
from llava_core.engines.transformers.pieces import charge
from llava_core.errors import BadCheckpoint

_LAYER = "CLIPEncoderLayer"
_LEAST_LIKENESS = 0.999
_Long, _Pointer, _Float = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class CTowerLayer(ctypes.Structure):
    """`TowerLayer` of tower.c."""

    _fields_ = (
        *((name, _Long) for name in ("hidden", "inner", "heads")),
        ("eps", _Float),
        ("scale", _Float),
        *((name, _Pointer) for name in ("qkv", "o", "up", "down", "qkv_bias", "o_bias", "up_bias", "down_bias")),
        *((name, _Pointer) for name in ("norm_in", "norm_in_bias", "norm_mid", "norm_mid_bias")),
    )


class CLook(ctypes.Structure):
    """`Look` of tower.c."""

    _fields_ = (
        ("pictures", _Long),
        ("patches", _Long),
        *((name, _Pointer) for name in ("from_", "to", "x", "normed", "qkv", "attended", "gated", "packed", "scores")),
    )


@torch.inference_mode()
def take_tower(model: PreTrainedModel, library: ctypes.CDLL) -> int:
    """How many layers the kernel computes from now on; their own weights are given up. 0 for towers of other kinds.

    Raises BadCheckpoint where it computes something else than they did."""
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == _LAYER]
    if not layers or not all(map(_is_suited, layers)):
        return 0
    hidden = layers[0].embed_dim
    probe = torch.linspace(-2, 2, 40 * hidden).sin().view(1, 40, hidden).to(model.dtype)
    expected = layers[0](probe, None)
    arena = Arena(linear for layer in layers for linear in _linears(layer))
    scratch = Scratch()
    for layer in layers:
        layer.forward = _forward(library, _packed(layer, library, arena), arena, scratch)
    likeness = F.cosine_similarity(layers[0](probe, None).float(), expected.float(), dim=-1).min()
    if not likeness > _LEAST_LIKENESS:
        raise BadCheckpoint(
            f"the kernel does not compute what {_LAYER} does (likeness {likeness:.4f}); start with --kernel off"
        )
    return len(layers)


def _is_suited(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    inner = mlp.fc1.out_features
    return (
        all(type(each) is nn.Linear and type(each.weight) is nn.Parameter for each in _linears(layer))
        and all(each.bias is not None and each.weight.dtype == torch.bfloat16 for each in _linears(layer))
        and all(each.weight.device.type == "cpu" for each in _linears(layer))
        and type(mlp.activation_fn).__name__ == "QuickGELUActivation"
        and not (layer.embed_dim % 32 or inner % 32 or attention.head_dim % 32 or attention.head_dim > 256)
    )


def _linears(layer: Any) -> tuple[nn.Linear, ...]:
    own, mlp = layer.self_attn, layer.mlp
    return own.q_proj, own.k_proj, own.v_proj, own.out_proj, mlp.fc1, mlp.fc2


def _packed(layer: Any, library: ctypes.CDLL, arena: Arena) -> CTowerLayer:
    own, mlp = layer.self_attn, layer.mlp
    parts = (own.q_proj, own.k_proj, own.v_proj)
    return CTowerLayer(
        hidden=layer.embed_dim,
        inner=mlp.fc1.out_features,
        heads=own.num_heads,
        eps=layer.layer_norm1.eps,
        scale=own.scale,
        qkv_bias=arena.floats(*(each.bias for each in parts)),
        o_bias=arena.floats(own.out_proj.bias),
        up_bias=arena.floats(mlp.fc1.bias),
        down_bias=arena.floats(mlp.fc2.bias),
        norm_in=arena.floats(layer.layer_norm1.weight),
        norm_in_bias=arena.floats(layer.layer_norm1.bias),
        norm_mid=arena.floats(layer.layer_norm2.weight),
        norm_mid_bias=arena.floats(layer.layer_norm2.bias),
        qkv=arena.pack(library, parts),
        o=arena.pack(library, (own.out_proj,)),
        up=arena.pack(library, (mlp.fc1,)),
        down=arena.pack(library, (mlp.fc2,)),
    )


def _forward(library: ctypes.CDLL, layer: CTowerLayer, arena: Arena, scratch: Scratch) -> Callable[..., torch.Tensor]:
    """A layer's forward: (pictures, patches, hidden) -> the same. It keeps the arena alive."""

    def forward(hidden_states: torch.Tensor, attention_mask: None = None, **_: object) -> torch.Tensor:
        assert arena is not None
        given = hidden_states.contiguous()
        pictures, patches, hidden = given.shape
        rows, inner = pictures * patches, cast(int, layer.inner)
        charge(rows * hidden * (4 * hidden + 2 * inner + 2 * patches))
        found = torch.empty_like(given)
        width = library.padded_width
        look = CLook(
            pictures=pictures,
            patches=patches,
            from_=given.data_ptr(),
            to=found.data_ptr(),
            x=scratch.room("x", 4 * rows * hidden),
            normed=scratch.room("normed", 2 * (rows + 32) * width(hidden)),
            qkv=scratch.room("qkv", 2 * (rows + 32) * 3 * hidden),
            attended=scratch.room("attended", 2 * (rows + 32) * width(hidden)),
            gated=scratch.room("gated", 2 * (rows + 32) * width(inner)),
            packed=scratch.room("packed", 2 * 2 * pictures * library.padded_tokens(patches) * hidden),
            scores=scratch.room("scores", 4 * torch.get_num_threads() * library.scores_per_thread(patches)),
        )
        library.see(ctypes.byref(layer), ctypes.byref(look))
        return found

    return forward
