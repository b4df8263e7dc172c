"""A model over several devices: each layer's keys and values beside its weights, one store and one step per device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from llava_core.engines.transformers.attention import AttentionBackend, AttentionStep, Region, Span
from llava_core.errors import BadRequest

_OURS = ("batch", "mm_encoder_outputs")
"""Arguments of a step that accelerate must hand on as they are."""


def layer_devices(model: PreTrainedModel) -> tuple[torch.device, ...] | None:
    """Where each layer of the language model is; None for a model on one device.

    BadRequest where layers had to be left in main memory or on disk: each step would copy them to a GPU.
    """
    placed: Mapping[str, Any] = getattr(model, "hf_device_map", None) or {}
    devices = {name: _device(where) for name, where in placed.items()}
    if len({*devices.values()}) < 2:
        return None
    if left := sorted(name for name, device in devices.items() if device is None):
        raise BadRequest(
            f"the weights do not fit into the memory of the GPUs: {left[0]} and {len(left) - 1} more parts were left "
            "out; name more GPUs, quantise with --quantize nf4, or use --device cpu"
        )
    found: dict[int, torch.device] = {}
    decoder: nn.Module = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    for name, module in model.named_modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and id(module) in inside:
            found[layer] = cast(torch.device, _of(name, devices))
    return tuple(found[layer] for layer in sorted(found))


def join_ends(model: PreTrainedModel) -> None:
    """Let a model that accelerate dispatched take our steps: the rows whose logits are asked for are named on the
    device that inputs come to, so what the last layer gives is brought back there first."""
    hook: Any = getattr(model, "_hf_hook", None)
    first = model.device
    if hook is not None:
        first = _device(hook.execution_device) or first
        given = hook.skip_keys or ()
        hook.skip_keys = [*((given,) if isinstance(given, str) else given), *_OURS]

    def back(module: nn.Module, args: object, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state.to(first)
        return output

    model.get_decoder().register_forward_hook(back)


@dataclass(eq=False)
class SpreadRegion:
    """A region on every device."""

    parts: tuple[Region, ...]

    @property
    def tokens(self) -> int:
        return self.parts[0].tokens


class SpreadAttention:
    """One backend per device. They reserve and release together, so that a token has room on all or on none."""

    def __init__(self, backends: Mapping[torch.device, AttentionBackend], layers: Sequence[torch.device]) -> None:
        """`layers` says where each layer is; a backend counts only its own, in their order."""
        self.backends = tuple(backends.values())
        order = list(backends)
        self._places: list[tuple[int, int]] = []
        for number, device in enumerate(layers):
            self._places.append((order.index(device), layers[:number].count(device)))
        self.bytes_per_token = sum(backend.bytes_per_token for backend in self.backends)
        self.total_tokens = min(backend.total_tokens for backend in self.backends)

    def allocate(self, tokens: int) -> SpreadRegion | None:
        parts: list[Region] = []
        for backend in self.backends:
            part = backend.allocate(tokens)
            if part is None:
                self.release(SpreadRegion(tuple(parts)))
                return None
            parts.append(part)
        return SpreadRegion(tuple(parts))

    def resize(self, region: Region, tokens: int) -> bool:
        before = region.tokens
        done: list[tuple[AttentionBackend, Region]] = []
        for backend, part in zip(self.backends, _parts(region), strict=True):
            if not backend.resize(part, tokens):
                for grown, its in done:
                    grown.resize(its, before)
                return False
            done.append((backend, part))
        return True

    def copy(self, source: Region, target: Region, tokens: int) -> None:
        for backend, origin, end in zip(self.backends, _parts(source), _parts(target), strict=True):
            backend.copy(origin, end, tokens)

    def release(self, region: Region) -> None:
        for backend, part in zip(self.backends, _parts(region), strict=False):
            backend.release(part)

    def keys(self, region: Region, layer: int, tokens: int) -> torch.Tensor:
        at, own = self._places[layer]
        return self.backends[at].keys(_parts(region)[at], own, tokens)

    def begin(self, spans: Sequence[Span]) -> SpreadStep:
        steps = [
            backend.begin([replace(span, region=_parts(span.region)[at]) for span in spans])
            for at, backend in enumerate(self.backends)
        ]
        return SpreadStep(steps, self._places)


class SpreadStep:
    """One pass; each layer attends in the step of its device."""

    def __init__(self, steps: Sequence[AttentionStep], places: Sequence[tuple[int, int]]) -> None:
        self._steps = steps
        self._places = places

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        at, own = self._places[layer]
        return self._steps[at].attend(own, query, key, value, scaling, window)


def _parts(region: Region) -> tuple[Region, ...]:
    return cast(SpreadRegion, region).parts


def _of(name: str, devices: Mapping[str, torch.device | None]) -> torch.device | None:
    """The entry of the part that `name` is in: the longest that it begins with."""
    inside = [part for part in devices if not part or name == part or name.startswith(f"{part}.")]
    return devices[max(inside, key=len)]


def _device(where: object) -> torch.device | None:
    """What accelerate's map means: a GPU's number, a name, or None for what it leaves out of the GPUs' memory."""
    if where in ("cpu", "disk", "meta") or where == torch.device("cpu"):
        return None
    return torch.device("cuda", where) if isinstance(where, int) else torch.device(cast(Any, where))
