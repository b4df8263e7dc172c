"""Projectors of more than two layers (`mlp3x_gelu` …), which transformers' LLaVA has no place for.

A checkpoint with one says so in `projector_hidden_act`, where transformers and vLLM look up an activation: they refuse
it by that name and never serve it with layers missing. Its weights are `multi_modal_projector.linear_1`, `linear_2`,
`linear_3` …; all else is as in any other checkpoint. The names of projectors are the original LLaVA code's.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn

MOST_LAYERS = 16
"""More is taken for a slip of the hand."""
LOADS_ONLY_HERE = "LLaVA Serve alone loads it: transformers' and vLLM's LLaVA have two layers there and refuse more"
_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


def layers_of(projector: str) -> int | None:
    """How many linear layers a projector of that name has; None for a name that is none."""
    if projector == "linear":
        return 1
    named = _MLP.fullmatch(projector)
    layers = int(named[1]) if named else 0
    return layers if 0 < layers <= MOST_LAYERS else None


def activation_of(layers: int) -> str:
    """What `projector_hidden_act` says. One layer is kept as two, the second of which passes on what it is given."""
    return "linear" if layers < 2 else "gelu" if layers == 2 else f"mlp{layers}x_gelu"


def is_deep(config: Any) -> bool:
    """Whether a model of this config has more than two layers there."""
    return (layers_of(str(getattr(config, "projector_hidden_act", ""))) or 0) > 2


def with_projector(cls: Any, config: Any) -> Any:
    """The class that a checkpoint of this config is loaded into: transformers' own, or it with a deeper projector."""
    return _deepened(cls) if is_deep(config) else cls


class DeepProjector(nn.Module):
    """(…, tower's width) -> (…, language model's width): linear layers with GELU between them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        taken = config.vision_feature_layer
        given = config.vision_config.hidden_size * (1 if isinstance(taken, int) else len(taken))
        width: int = config.text_config.hidden_size
        self.count = layers_of(config.projector_hidden_act) or 0
        for number, columns in zip(range(self.count), chain((given,), repeat(width)), strict=False):
            self.add_module(f"linear_{number + 1}", nn.Linear(columns, width, bias=config.multimodal_projector_bias))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        hidden = image_features
        for number in range(self.count):
            hidden = self.get_submodule(f"linear_{number + 1}")(nn.functional.gelu(hidden) if number else hidden)
        return hidden


class _Deep:
    """Mixed in before one of transformers' LLaVA classes."""

    def __init__(self, config: Any) -> None:
        named, config.projector_hidden_act = config.projector_hidden_act, "gelu"
        try:
            super().__init__(config)  # pyright: ignore[reportCallIssue]
        finally:
            config.projector_hidden_act = named
        model: Any = self
        model.model.multi_modal_projector = DeepProjector(config)
        model.post_init()


@cache
def _deepened(cls: Any) -> Any:
    # Under the same name: by it transformers knows how the class's weights are called on disk.
    return type(cls.__name__, (_Deep, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
