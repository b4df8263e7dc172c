"""What is told while a model trains: the journal, TensorBoard, and a bar (or now and then a line) on the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_core.train.answer import Answered
from llava_core.train.journal import Journal
from llava_core.train.words import duration

LINE_S = 15.0
"""Between two lines where no bar can be drawn."""


class Reporter(TrainerCallback):
    """Of the main process. `rates` asks the optimiser for its rates by part, `work` for what was done so far."""

    def __init__(self, journal: Journal, console: Console, board: Path | None, *, tokens: Any, rates: Any) -> None:
        self._journal = journal
        self._console = console
        self._folder = board
        self._tokens = tokens
        self._rates = rates
        self._board: Any = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._before = self._began = self._said = 0.0
        self._first = 0
        self._last = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._journal.forget_after(state.global_step)
        self._before = float(self._journal.plan().get("seconds", 0))
        self._began, self._first = time.monotonic(), state.global_step
        self._last = (self._began, self._tokens())
        if self._folder is not None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._folder), purge_step=state.global_step + 1)
        if self._console.is_terminal:
            # The bar takes what the figures leave.
            self._bar = Progress(
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True)),
                console=self._console,
            )
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, said="")
            self._bar.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), self._tokens()
        before, counted = self._last
        self._last = (now, tokens)
        rates = self._rates()
        entry = {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0), 4),
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "rates": rates,
            "tokens_per_s": round((tokens - counted) / max(1e-9, now - before), 1),
            "seconds": round(self._before + now - self._began, 3),
            "left_s": round(self._left(state, now), 1),
            "time": time.time(),
        }
        self._journal.log(entry)
        self._scalars(entry, state.global_step)
        self._say(state, entry)

    def evaluated(self, step: int, figures: Mapping[str, float], answers: Sequence[Answered]) -> None:
        self._journal.log({"step": step, **figures})
        for answered in answers:
            self._journal.sample({"step": step, **answered.as_json()})
        words = f"step {step}: held-out loss {figures['eval_loss']:.4f}"
        if answers:
            words += f", {sum(each.right for each in answers)} of {len(answers)} answers as the data has them"
        self._print(words)
        for each in answers:
            self._print(f"  {each.question!r} -> {each.answer!r} (data: {each.truth!r})", style="dim")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"held-out/{name.removeprefix('eval_')}", value, step)
            text = "\n\n".join(f"**{each.question}** {each.answer} (*{each.truth}*)" for each in answers)
            self._board.add_text("answers", text, step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _left(self, state: TrainerState, now: float) -> float:
        done = max(1, state.global_step - self._first)
        return (now - self._began) / done * (state.max_steps - state.global_step)

    def _scalars(self, entry: Mapping[str, Any], step: int) -> None:
        if self._board is None:
            return
        for name in ("loss", "grad_norm", "tokens_per_s"):
            if entry[name] is not None:
                self._board.add_scalar(f"training/{name}", entry[name], step)
        for part, rate in entry["rates"].items():
            self._board.add_scalar(f"rate/{part}", rate, step)

    def _say(self, state: TrainerState, entry: Mapping[str, Any]) -> None:
        rate = max(entry["rates"].values(), default=0.0)
        said = f"step {state.global_step}/{state.max_steps}  loss {entry['loss']:.4f}  rate {rate:.2e}  "
        said += f"{entry['tokens_per_s']:,.0f} tokens/s  {duration(entry['left_s'])} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step, said=said)
            return
        now = time.monotonic()
        if now - self._said >= LINE_S or state.global_step in (self._first + 1, state.max_steps):
            self._said = now
            self._print(said)

    def _print(self, words: str, *, style: str | None = None) -> None:
        (self._bar.console if self._bar else self._console).print(
            words, markup=False, highlight=False, soft_wrap=True, style=style
        )
