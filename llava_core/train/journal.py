"""The records of a run: figures and sample answers as JSON lines, which the plot, the card and `watch` read.

Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = "run"
LOG, SAMPLES, PLAN, SETTINGS = "log.jsonl", "samples.jsonl", "plan.json", "settings.toml"


def run_folder(out: Path) -> Path:
    """Where a checkpoint's run keeps its records; `out` may be that folder itself."""
    return out if (out / PLAN).is_file() else out / RUN


@dataclass(frozen=True)
class Journal:
    """Writes and reads one run's records. A line that was cut short by a kill is passed over."""

    folder: Path

    def plan(self) -> dict[str, Any]:
        """What the run set out to do; empty before it began."""
        try:
            return json.loads((self.folder / PLAN).read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{PLAN}.unfinished"
        unfinished.write_text(json.dumps(plan, indent=2) + "\n", "utf-8")
        unfinished.replace(self.folder / PLAN)

    def log(self, entry: Mapping[str, Any]) -> None:
        self._append(LOG, entry)

    def sample(self, entry: Mapping[str, Any]) -> None:
        self._append(SAMPLES, entry)

    def figures(self) -> list[dict[str, Any]]:
        return list(self._read(LOG))

    def losses(self) -> list[dict[str, Any]]:
        return [entry for entry in self.figures() if "loss" in entry]

    def seconds(self) -> float:
        """Spent on training until the last figure, over all sessions, with what a killed one did for nothing."""
        return max((float(entry.get("seconds", 0)) for entry in self.losses()), default=0.0)

    def evaluations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.figures() if "eval_loss" in entry]

    def samples(self) -> list[dict[str, Any]]:
        return list(self._read(SAMPLES))

    def forget_after(self, step: int) -> None:
        """Drop what a killed run wrote after the state that it goes on from."""
        for name in (LOG, SAMPLES):
            kept = [entry for entry in self._read(name) if entry.get("step", 0) <= step]
            unfinished = self.folder / f"{name}.unfinished"
            unfinished.write_text("".join(_line(entry) for entry in kept), "utf-8")
            unfinished.replace(self.folder / name)

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(_line(entry))

    def _read(self, name: str) -> Iterator[dict[str, Any]]:
        try:
            lines = (self.folder / name).read_text("utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """A running mean that trusts its first values less than later ones."""
    found: list[float] = []
    total = trust = 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        trust = weight * trust + (1 - weight)
        found.append(total / trust)
    return found


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
