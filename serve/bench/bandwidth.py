"""The machine's own limits: how fast torch reads memory here, and how fast it multiplies a model's weights.

A token generated alone needs every weight of the language model once, so no engine on the same weights can be faster
than reading them takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_GIB = 1 << 30
_TRIES = 5


@dataclass(frozen=True)
class WeightFacts:
    """What one generated token reads. `bytes` are the language model's weights without the embedding table, of which
    it takes one row; `kv_bytes` what each earlier token adds."""

    bytes: int
    kv_bytes: int
    parameters: int
    """Of the whole model."""


@dataclass(frozen=True)
class Limits:
    """`read_bytes_per_s`: the best of summing, copying and multiplying a large matrix with a vector. `pass_s`: the
    model's own matrices, one after the other, times one vector each, and nothing else."""

    read_bytes_per_s: float
    pass_s: float

    def tokens_per_s(self, facts: WeightFacts, context: float) -> float:
        """At batch 1 with `context` earlier tokens."""
        return self.read_bytes_per_s / (facts.bytes + context * facts.kv_bytes)


def weigh(model: PreTrainedModel) -> WeightFacts:
    from llava_core.engines.transformers.attention import KVShape

    whole: Any = model
    shape = KVShape.of(model)
    return WeightFacts(
        bytes=sum(weight.nbytes for weight in _read_weights(model)),
        kv_bytes=2 * shape.layers * shape.kv_heads * shape.dim * model.dtype.itemsize,
        parameters=sum(parameter.numel() for parameter in whole.parameters()),
    )


def measure_limits(model: PreTrainedModel, buffer_bytes: int | None = None) -> Limits:
    """A second or so on a CPU; blocks. The buffer is larger than any cache unless told otherwise."""
    import torch

    with torch.inference_mode():
        return Limits(_read_speed(model, buffer_bytes or _buffer_bytes(model.device)), _pass_time(model))


def _read_speed(model: PreTrainedModel, size: int) -> float:
    import torch

    dtype = torch.float32 if model.device.type == "cpu" else torch.bfloat16
    columns = 4096
    rows = max(1, size // (columns * dtype.itemsize))
    matrix = torch.ones(rows, columns, dtype=dtype, device=model.device)
    vector = torch.ones(columns, dtype=dtype, device=model.device)
    half = rows // 2
    tries: list[Callable[[], Any]] = [lambda: torch.mv(matrix, vector), matrix.sum]
    if half:
        # Reads one half and writes the other: as many bytes moved as the whole has.
        tries.append(lambda: matrix[:half].copy_(matrix[half : 2 * half]))
    return matrix.nbytes / min(_median_s(each, model.device) for each in tries)


def _pass_time(model: PreTrainedModel) -> float:
    import torch
    import torch.nn.functional as F

    matrices = [weight for weight in _read_weights(model) if weight.ndim == 2 and weight.is_floating_point()]
    vectors = {
        width: torch.ones(1, width, dtype=model.dtype, device=model.device)
        for width in {matrix.shape[1] for matrix in matrices}
    }

    def run() -> None:
        for matrix in matrices:
            F.linear(vectors[matrix.shape[1]], matrix)

    return _median_s(run, model.device)


def _read_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    whole: Any = model
    decoder, table, output = whole.get_decoder(), whole.get_input_embeddings(), whole.get_output_embeddings()
    weights = [weight for weight in decoder.parameters() if weight is not table.weight]
    return [*weights, *(output.parameters() if output is not None else ())]


def _median_s(run: Callable[[], Any], device: torch.device) -> float:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    times: list[float] = []
    for _ in range(_TRIES):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _buffer_bytes(device: torch.device) -> int:
    import psutil

    if device.type != "cpu":
        return 4 * _GIB
    return min(_GIB, psutil.virtual_memory().available // 4)
