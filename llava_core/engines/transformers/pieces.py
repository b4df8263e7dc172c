"""Runs a model's vision side in pieces of bounded work: it pauses between two of its operations and goes on later.

A piece is measured in multiplications, not in time: the same on every machine, and known on a GPU before it is done.
The pause is a switch of stacks in one thread (greenlet), so no family needs code of its own, nothing is computed in
another order, and the thread pools below torch stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_COUNTED = "sdpa in pieces"

T = TypeVar("T")


class Task(Generic[T]):
    """A function that is run in pieces, all on the thread that made the task.

    What it shares with other tasks and with the rest of the model must not be changed by them between two pieces.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._stack = _Stack(self._run)
        self._stack.task = cast("Task[object]", self)
        self._allowed = 0.0
        self._result: T | None = None
        self.spent = 0.0
        """Multiplications of the latest piece."""

    def advance(self, allowed: float) -> bool:
        """Go on for at most that much work, or a single operation that is larger. True when the function has
        returned; what it raises comes out here."""
        self._allowed, self.spent = allowed, 0.0
        self._stack.switch()
        return bool(self._stack.dead)

    @property
    def result(self) -> T:
        assert self._stack.dead, "the function has not returned yet"
        return cast(T, self._result)

    def stop(self) -> None:
        """Leave the function where it stands, through its `finally` blocks."""
        self._stack.throw()

    def _run(self) -> None:
        self._result = self._function()

    def charge(self, work: float) -> None:
        """About to do so much: pause first if that is more than the piece has left."""
        if self.spent and self.spent + work > self._allowed:
            cast(Any, self._stack.parent).switch()
        self.spent += work


class _Stack(greenlet):
    task: Task[object] | None = None


def pause_between_operations(model: PreTrainedModel) -> None:
    """Let everything in a model but its language model be run in pieces. By themselves its results stay the same."""
    inner: Any = model.get_decoder()
    language = {id(module) for module in inner.modules()} | {id(model.get_output_embeddings())}
    for module in model.modules():
        if id(module) not in language and _outputs(module):
            module.register_forward_pre_hook(_before_operation)
    names: dict[str, Any] = getattr(model.config, "sub_configs", {})
    AttentionInterface.register(_COUNTED, _counted_attention)
    model.set_attn_implementation({name: _COUNTED for name in names if name != "text_config"})


def charge(work: float) -> None:
    """Before an operation of so many multiplications: the task that this runs in may pause here."""
    stack = getcurrent()
    if isinstance(stack, _Stack) and stack.task is not None:
        stack.task.charge(work)


def token_work(model: PreTrainedModel) -> float:
    """Multiplications that one token takes in the language model's layers."""
    decoder: Any = model.get_decoder()
    outputs = ((module, _outputs(module)) for module in decoder.modules())
    return float(sum(getattr(module, "in_features", 0) * count for module, count in outputs)) or 1.0


def _outputs(module: nn.Module) -> int:
    """Products that a layer makes of each number it is given; 0 for what is no linear layer or convolution. The
    convolutions of vision towers cut a picture into patches: each number goes into one of them."""
    count = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
    return count if isinstance(count, int) else 0


def _before_operation(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], torch.Tensor):
        charge(inputs[0].numel() * _outputs(module))


def _counted_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    charge(2 * query.numel() * key.shape[-2])
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
