"""Weights of linear layers in the order the CPU's matrix unit reads them, rearranged once instead of at each call.

A half-precision product of a few rows is bound by reading the weights; torch hands oneDNN plain weights, which it
rearranges every time. Packed once, a decode step reads them nearly as fast as memory gives them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

_LEAST_LIKENESS = 0.999
_ROWS = 64
"""Rows of input the layout is chosen for; one row and hundreds are read about as fast in it."""


class PackedLinear(nn.Module):
    """`nn.Linear` for inference with weights in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.product(inputs, "none")

    def product(self, inputs: torch.Tensor, then: str) -> torch.Tensor:
        """The product, and what oneDNN applies to it before it is written: "swish" (SiLU), or "none"."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self.bias, then, [], "")

    def product_times(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product, multiplied by `other` element by element before it is written."""
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, other, self._weight, self.bias, "mul")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class JoinedLinear:
    """Several layers of the same inputs (queries, keys and values) as one product, which costs less than three."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        biases = [each.bias.detach() for each in linears if each.bias is not None]
        whole = nn.Linear(1, 1, bias=bool(biases), device="meta")
        whole.in_features, whole.out_features = linears[0].in_features, sum(each.out_features for each in linears)
        whole.weight = nn.Parameter(torch.cat([each.weight.detach() for each in linears]), requires_grad=False)
        if biases:
            whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        self._packed = PackedLinear(whole)
        self._sizes = [each.out_features for each in linears]
        self._inputs: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def take(self, inputs: torch.Tensor, part: int) -> torch.Tensor:
        """One layer's outputs. The others' are kept until they are asked for with the very same tensor."""
        if inputs is not self._inputs or part not in self._outputs:
            self._inputs = inputs
            self._outputs = dict(enumerate(self._packed(inputs).split(self._sizes, dim=-1)))
        outputs = self._outputs.pop(part)
        if not self._outputs:
            self._inputs = None
        return outputs


class JoinedPart(nn.Module):
    """Stands where one of the joined layers stood."""

    def __init__(self, joined: JoinedLinear, part: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._joined, self._part = joined, part

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._joined.take(inputs, self._part)


class GatedProduct(nn.Module):
    """down(SiLU(gate(x)) * up(x)), with both in between done while the products are written."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = PackedLinear(gate), PackedLinear(up), PackedLinear(down)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj.product(inputs, "swish")
        return self.down_proj(self.up_proj.product_times(inputs, gate))


def pack_linears(model: nn.Module) -> int:
    """Replace the plain half-precision linear layers of a model on the CPU; returns how many.

    Nothing is done where the processor has no fast half-precision products, or for quantised layers.
    """
    packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            gated = _gated(child)
            if gated is not None:
                setattr(parent, name, gated)
                packed += 3
        packed += _join(parent)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _worth_it(child.weight):
                setattr(parent, name, PackedLinear(child))
                packed += 1
    if packed:
        log.info("packed the weights of %d linear layers for this processor", packed)
    return packed


def _plain(parent: nn.Module, names: Sequence[str]) -> list[nn.Linear] | None:
    """The layers of these names, if all are there and can be packed."""
    layers = [getattr(parent, name, None) for name in names]
    found = [layer for layer in layers if type(layer) is nn.Linear and _worth_it(layer.weight)]
    return found if len(found) == len(names) else None


def _join(parent: nn.Module) -> int:
    """Make one product of an attention's queries, keys and values; returns how many layers went into it."""
    names = ("q_proj", "k_proj", "v_proj")
    layers = _plain(parent, names)
    if layers is None or len({(layer.in_features, layer.bias is None) for layer in layers}) > 1:
        return 0
    joined = JoinedLinear(layers)
    for part, (name, layer) in enumerate(zip(names, layers, strict=True)):
        setattr(parent, name, JoinedPart(joined, part, layer))
    return len(names)


@torch.inference_mode()
def _gated(module: nn.Module) -> GatedProduct | None:
    """The same for a gated feed-forward layer, if it is one: known by its names, and by computing the same."""
    layers = _plain(module, ("gate_proj", "up_proj", "down_proj"))
    if layers is None:
        return None
    probe = torch.linspace(-2, 2, 2 * layers[0].in_features, dtype=layers[0].weight.dtype).view(1, 2, -1)
    try:
        expected, candidate = module(probe).float(), GatedProduct(*layers)
        given = candidate(probe).float()
    except (TypeError, RuntimeError):
        return None
    like = expected.shape == given.shape and torch.cosine_similarity(given, expected, dim=-1).min() > _LEAST_LIKENESS
    return candidate if like else None


def _worth_it(weight: torch.Tensor) -> bool:
    # Quantised weights are tensors of a class of their own in an ordinary layer.
    if (
        type(weight) is not nn.Parameter
        or not weight.numel()
        or weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
