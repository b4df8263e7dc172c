"""Draws a run's loss and rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_core.train.journal import Journal, smoothed

_LOSS, _HELD_OUT = "#3b6fb6", "#c8553d"


def write_plot(journal: Journal, file: Path) -> None:
    """Nothing is written for a run without figures."""
    losses = journal.losses()
    if not losses:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above, below = axes
    steps = [entry["step"] for entry in losses]
    values = [entry["loss"] for entry in losses]
    above.plot(steps, values, color=_LOSS, alpha=0.3, linewidth=1)
    above.plot(steps, smoothed(values), color=_LOSS, linewidth=2, label="training")
    held_out = journal.evaluations()
    if held_out:
        above.plot(
            [entry["step"] for entry in held_out],
            [entry["eval_loss"] for entry in held_out],
            color=_HELD_OUT,
            marker="o",
            markersize=4,
            label="held out",
        )
    above.set_ylabel("loss")
    above.legend(frameon=False)
    for part in sorted({part for entry in losses for part in entry["rates"]}):
        below.plot(steps, [entry["rates"].get(part, 0.0) for entry in losses], label=part, linewidth=1.5)
    below.set_ylabel("rate")
    below.set_xlabel("step")
    below.legend(frameon=False, fontsize="small")
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
