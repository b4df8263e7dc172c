"""What a launch shows: a live table while processes come up, one line per event, a closing box with the addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from serve.launcher.logs import last_line, without_stamp
from serve.launcher.supervisor import Child, Event

_LOOPING = 3
"""Deaths in a row from which a child is said to be in a crash loop."""


@dataclass(frozen=True)
class Box:
    """What the closing box says. `models` are names with notes, `missing` the processes that are not up."""

    page_url: str
    api_url: str
    logs: Path
    models: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    public_url: str | None = None


class LaunchConsole:
    """Writes to a terminal or, line by line, to a file. Goes on silently when the terminal is gone."""

    def __init__(self, console: Console, titles: Mapping[str, str]) -> None:
        """`titles` says what a child is, beside its own name."""
        self._console, self._titles = console, titles
        self._live: Live | None = None
        self._spinners: dict[str, Spinner] = {}

    def title(self, child: Child) -> str:
        known = self._titles.get(child.spec.name)
        return f"{child.spec.name} ({known})" if known else child.spec.name

    def say(self, text: str, style: str = "") -> None:
        with contextlib.suppress(OSError):
            self._console.print(Text(text, style=style), soft_wrap=True)

    def event(self, event: Event) -> None:
        """One line about it, if it is worth one."""
        name, child = self.title(event.child), event.child
        match event.kind:
            case "started":
                if not self._console.is_terminal or child.failures:
                    self.say(f"  {name}: starting (pid {child.pid})", "dim")
            case "ready":
                self.say(f"✓ {name}: ready after {event.took_s:.0f} s", "green")
            case "refused":
                self.say(f"✗ {name}: {event.why or 'ended without a word'}", "bold red")
                self.say(f"  It is not started again; the whole story is in {child.spec.log}", "dim")
            case "died":
                self.say(f"✗ {name}: {_end_of(event)}{': ' + event.why if event.why else ''}", "bold red")
                loop = f"; it has died {child.failures} times in a row" if child.failures >= _LOOPING else ""
                self.say(f"  Starting it again in {event.retry_s:.0f} s{loop}; its log is {child.spec.log}", "yellow")
            case "killed":
                self.say(f"  {name}: did not end when asked to, so it was killed", "yellow")

    def show(self, children: Sequence[Child], now: float) -> None:
        """The live table; nothing where the output is no terminal."""
        if not self._console.is_terminal:
            return
        with contextlib.suppress(OSError):
            if self._live is None:
                # No thread of its own: children are forked from this process.
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(Group(*(self._row(child, now) for child in children if child.state != "ready")))
            self._live.refresh()

    def close_table(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def box(self, box: Box) -> None:
        """The closing box."""
        table = Table.grid(padding=(0, 2))
        table.add_row("Page", Text(box.page_url, style="bold cyan underline"))
        if box.public_url:
            table.add_row("Public", Text(box.public_url, style="bold cyan underline"))
        table.add_row("API", box.api_url)
        for index, (name, note) in enumerate(box.models):
            table.add_row("" if index else "Models", Text.assemble(name, (f"  {note}" if note else "", "yellow")))
        for index, sentence in enumerate(box.missing):
            table.add_row("" if index else "Not up", Text(sentence, style="bold red"))
        table.add_row("Logs", Text(str(box.logs)))
        table.add_row("Stop", "Ctrl-C")
        with contextlib.suppress(OSError):
            self._console.print(Panel(table, title="LLaVA Serve is ready", expand=False, padding=(1, 2)))

    def _row(self, child: Child, now: float) -> RenderableType:
        saying = without_stamp(last_line(child.output)) if child.state == "starting" else ""
        text = Text.assemble(self.title(child), (f"  {child.state} {now - child.since:.0f} s  ", "dim"))
        text.append(saying[: max(0, self._console.width - len(text) - 6)], style="dim italic")
        if child.state == "refused":
            return Text.assemble(("✗ ", "red"), text)
        spinner = self._spinners.setdefault(child.spec.name, Spinner("dots"))
        spinner.update(text=text)
        return spinner


def _end_of(event: Event) -> str:
    if event.code < 0:
        return f"was ended by signal {-event.code} after {event.took_s:.0f} s"
    return f"ended with code {event.code} after {event.took_s:.0f} s"
