"""A line on standard error that counts answers, where a person looks."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from serve.bench.records import Answer


class AnswerCount:
    """Call it with every answer, inside its block."""

    def __init__(self, title: str) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._title = title
        self._done = self._failed = 0
        self._task = self._bar.add_task(title)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, answer: Answer) -> None:
        self._done += 1
        self._failed += answer.error is not None
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, description=f"{self._title}: {self._done} answers{failed}")
