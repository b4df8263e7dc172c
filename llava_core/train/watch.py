"""Shows a run in the terminal while it trains: loss, rates, time left and the latest sample answers."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llava_core.errors import BadRequest
from llava_core.train.journal import Journal, run_folder, smoothed
from llava_core.train.words import duration

_EVERY_S = 1.0
_WIDEST = 120
_LOW, _HIGH = 6, 10
"""Rows of the curve, in a terminal of the usual 24 lines and in a tall one."""
_TALL = 32
_SILENT_S = 120.0
"""Without a new line for so long (and ten times a step), the run has probably stopped."""
_BARS = " ▁▂▃▄▅▆▇█"


def watch(run: Path, console: Console, *, once: bool) -> None:
    """Until the run is finished or Ctrl-C. BadRequest where there is no run."""
    journal = Journal(run_folder(run))
    if not journal.plan():
        raise BadRequest(f"there is no run in {str(run)!r} yet; name the --out of a pretrain or finetune", param="RUN")
    if once:
        console.print(picture_of(journal, run.name, console.width, 2 * _TALL))
        return

    def now() -> RenderableType:
        # A line stays free for the cursor, and what Ctrl-C writes fits beside the frame.
        return picture_of(journal, run.name, console.width - 2, console.height - 1)

    try:
        with Live(now(), console=console, auto_refresh=False) as live:
            while not journal.plan().get("finished"):
                time.sleep(_EVERY_S)
                live.update(now(), refresh=True)
    except KeyboardInterrupt:
        return


def picture_of(journal: Journal, name: str, width: int, height: int) -> RenderableType:
    """The run as it is now, in a frame of that size at most."""
    plan, losses = journal.plan(), journal.losses()
    width = min(width, _WIDEST)
    inner = width - 4
    parts: list[RenderableType] = [_progress(plan, losses, inner)]
    left = height - 4
    if losses:
        values = smoothed([entry["loss"] for entry in losses])
        rows = _HIGH if height >= _TALL else _LOW
        parts.append(_curve(values, losses[0]["step"], losses[-1]["step"], inner, rows))
        left -= rows + 1
    held_out = journal.evaluations()
    if held_out:
        parts.append(Text(_evaluations(held_out, inner), no_wrap=True, overflow="ellipsis"))
        left -= 1
    samples = journal.samples()
    if samples:
        parts.append(_answers(samples, inner, left))
    return Panel(Group(*parts), title=f"{name}: {plan['stage']}", title_align="left", width=width)


def _progress(plan: dict[str, Any], losses: Sequence[dict[str, Any]], width: int) -> RenderableType:
    if not losses:
        return Text("no step is done yet: samples are checked, pictures encoded")
    last = losses[-1]
    before = f"step {last['step']:,}/{plan['steps']:,}"
    after = f"loss {last['loss']:.4f}  {last['tokens_per_s']:,.0f} tokens/s  {_state(plan, losses)}"
    table = Table.grid(padding=(0, 2))
    free = width - len(before) - len(after) - 4
    if free > 3:
        bar = ProgressBar(total=plan["steps"], completed=last["step"], width=min(free, 40))
        table.add_row(Text(before), bar, Text(after))
    else:
        table.add_row(Text(before), Text(after))
    rates = "  ".join(f"{part} {rate:.2e}" for part, rate in last["rates"].items())
    return Group(table, Text(f"rate  {rates}", style="dim", no_wrap=True, overflow="ellipsis"))


def _state(plan: dict[str, Any], losses: Sequence[dict[str, Any]]) -> str:
    last = losses[-1]
    if plan.get("finished"):
        return f"finished in {duration(plan['seconds'])}"
    silent = time.time() - last["time"]
    usual = last["seconds"] / max(1, len(losses))
    if silent > max(_SILENT_S, 10 * usual):
        return f"silent for {duration(silent)}: stopped? go on with --resume"
    return f"{duration(last['left_s'])} left"


def _curve(values: Sequence[float], first: int, last: int, width: int, height: int) -> RenderableType:
    """The loss in characters, eight of whose heights fit into each row; all of it, however short, over the width."""
    width -= 10
    cut = [values[place * len(values) // width] for place in range(width - 1)] + [values[-1]]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    heights = [1 + round((value - low) / span * (height * 8 - 1)) for value in cut]
    rows = []
    for row in range(height - 1, -1, -1):
        bars = "".join(_BARS[max(0, min(8, height - row * 8))] for height in heights)
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        rows.append(f"{label} ┤{bars}")
    rows.append(f"{'':8}  {first}{f'{last:,}'.rjust(width - len(str(first)))}")
    return Text("\n".join(rows), style="cyan", no_wrap=True)


def _evaluations(entries: Sequence[dict[str, Any]], width: int) -> str:
    """As many of the latest as fit into a line."""
    told = ""
    for entry in reversed(entries):
        right = f", {entry['eval_right']:.0%} right" if "eval_right" in entry else ""
        more = f"  step {entry['step']:,}: {entry['eval_loss']:.4f}{right}{told}"
        if told and len(more) > width - len("held out"):
            break
        told = more
    return f"held out{told}"


def _answers(samples: Sequence[dict[str, Any]], width: int, height: int) -> RenderableType:
    """The latest ones, each in as many lines as there is room for."""
    last = max(sample["step"] for sample in samples)
    latest = [sample for sample in samples if sample["step"] == last]
    latest = latest[: max(1, height - 1)]
    lines = max(1, (height - 1) // len(latest))
    columns = {"question": "question", "truth": "the data says", "answer": f"answer at step {last:,}"}
    widths = [max(len(head), *(len(sample[name]) for sample in latest)) for name, head in columns.items()]
    free = width - 4
    if sum(widths) > free:
        widths = [free * 3 // 10, free * 3 // 10, free - 2 * (free * 3 // 10)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head, size in zip(columns.values(), widths, strict=True):
        table.add_column(Text(head, no_wrap=True), width=size, no_wrap=True)
    for sample in latest:
        mark = "green" if sample["right"] else ""
        cells = [_cut(sample[name], size, lines) for name, size in zip(columns, widths, strict=True)]
        table.add_row(Text(cells[0]), Text(cells[1]), Text(cells[2], style=mark))
    return table


def _cut(words: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(words, width, max_lines=lines, placeholder=" …") or [""])
