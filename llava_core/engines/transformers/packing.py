"""Weights of linear layers in the order the CPU's matrix unit reads them, rearranged once instead of at each call.

A half-precision product of a few rows is bound by reading the weights; torch hands oneDNN plain weights, which it
rearranges every time. Packed once, a decode step reads them nearly as fast as memory gives them.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

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
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def pack_linears(model: nn.Module) -> int:
    """Replace the plain half-precision linear layers of a model on the CPU; returns how many.

    Nothing is done where the processor has no fast half-precision products, or for quantised layers.
    """
    packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _worth_it(child.weight):
                setattr(parent, name, PackedLinear(child))
                packed += 1
    if packed:
        log.info("packed the weights of %d linear layers for this processor", packed)
    return packed


def _worth_it(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
