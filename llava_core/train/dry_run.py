"""Rehearses a run: what learns, memory, steps and time, measured on a few batches; nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from llava_core.checkpoints.deep_projector import LOADS_ONLY_HERE, is_deep
from llava_core.checkpoints.memory import in_words
from llava_core.train.encode import encode, measure
from llava_core.train.learn import counts, learning, rates
from llava_core.train.settings import Settings
from llava_core.train.stage import Stage, prepare
from llava_core.train.words import duration

_TRIED = 3
"""Batches that are timed, after one to warm up."""


@dataclass(frozen=True)
class Rehearsal:
    """What was measured: seconds per batch and per picture, bytes that were needed at the most."""

    batch_s: float
    picture_s: float
    feature_bytes: int
    peak_bytes: int


def dry_run(settings: Settings, console: Console) -> Rehearsal:
    """Print the plan of a run and what it will take."""
    settings.needs("model", "data")
    stage = prepare(settings, console, records=None)
    steps = stage.steps()
    found = _rehearse(stage)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    rate = rates(settings)
    for part, count in counts(stage.model).items():
        table.add_row(f"learns: {part}", f"{count:,} weights at {rate[part]:g}")
    if is_deep(stage.model.config):
        table.add_row("loads in", LOADS_ONLY_HERE)
    frozen = sum(weight.numel() for weight in stage.model.parameters() if not weight.requires_grad)
    table.add_row("frozen", f"{frozen:,} weights in {stage.precision.name}")
    table.add_row("samples", f"{len(stage.data.taken):,} with {stage.data.pictures:,} pictures")
    table.add_row("tokens", f"{stage.data.tokens:,}, {stage.data.tokens / len(stage.data.taken):.0f} a sample")
    table.add_row(
        "steps", f"{steps.total:,} of {settings.batch_size} samples: {steps.micro} at once, {steps.rounds} times"
    )
    weights = sum(weight.numel() * weight.element_size() for weight in stage.model.parameters())
    # Of what learns: a gradient and AdamW's two means, in float32.
    extra = sum(3 * 4 * weight.numel() for _, weight in learning(stage.model))
    table.add_row("memory", f"{in_words(weights)} weights, {in_words(extra)} gradients and optimiser")
    table.add_row("", f"{in_words(max(found.peak_bytes + extra, weights + extra))} in all, with a batch's activations")
    training = found.batch_s * steps.rounds * steps.total
    table.add_row("time", f"{duration(training)} on this machine, as it is now ({found.batch_s:.2f} s a batch)")
    if stage.to_encode:
        total = found.picture_s * len(stage.to_encode)
        table.add_row("", f"and {duration(total)} before, to encode {len(stage.to_encode):,} pictures")
        table.add_row("disk", f"{in_words(found.feature_bytes * len(stage.to_encode))} of features")
    console.print(table)
    return found


def _rehearse(stage: Stage) -> Rehearsal:
    lessons, collate = stage.data.lessons, stage.collate()
    model: Any = stage.model.to(stage.device)
    pictured = stage.to_encode[:4]
    picture_s, size = 0.0, 0
    if stage.cache is not None and pictured:
        measure(model, lessons.side, stage.cache, pictured[:1])
        pace = measure(model, lessons.side, stage.cache, pictured)
        picture_s, size = pace.seconds, pace.size
    order = iter(stage.order())
    spent: list[float] = []
    model.train()
    if stage.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(_TRIED + 1):
        indices = list(islice(order, stage.steps().micro))
        if not indices:
            break
        batch = collate([lessons[index] for index in indices])
        if stage.cache is not None and "pixel_values" in batch:
            with torch.no_grad():
                batch["features"] = torch.cat(list(encode(model, [batch.pop("pixel_values")])))
        began = time.perf_counter()
        moved = {name: _moved(value, stage.device) for name, value in batch.items()}
        with torch.autocast(stage.device, stage.precision.compute, enabled=stage.precision.name != "fp32"):
            loss = model(**moved).loss
        loss.backward()
        if stage.device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
    timed = spent[1:] or spent
    return Rehearsal(sum(timed) / len(timed), picture_s, size, _peak(stage.device))


def _moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _peak(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    memory: Any = psutil.Process().memory_info()
    return int(memory.rss)
