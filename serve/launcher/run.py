"""A launch from its first process to its last: shown while it comes up, announced when ready, ended on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console

from llava_core.errors import LlavaError
from serve.client import Client
from serve.launcher.console import Box, LaunchConsole
from serve.launcher.logs import rotate
from serve.launcher.plan import Plan
from serve.launcher.supervisor import Child, Supervisor

_PROBE_S = 2.0
_LISTED_WITHIN_S = 10.0
_SHARED_WITHIN_S = 30.0
_REDRAW_S = 0.1
_SHARE_LINK = re.compile(r"https://[\w.-]+\.gradio\.live\S*")


async def run_plan(plan: Plan, console: Console, logs: Path) -> int:
    """Returns the exit code once every process has ended: 0 when a person ended them, 1 when nothing could serve."""
    shown = LaunchConsole(console, plan.titles)
    for note in plan.notes:
        shown.say(note, "yellow")
    for child in plan.children:
        rotate(child.log)
    async with httpx.AsyncClient(timeout=_PROBE_S, trust_env=False) as http:
        supervisor = Supervisor(plan.children, probe=lambda url: _answers(http, url), tell=shown.event)
        _stop_on_signals(supervisor, shown)
        running = asyncio.create_task(supervisor.run())
        announcing = asyncio.create_task(_announce(plan, supervisor, shown, logs))
        try:
            await asyncio.wait((running, announcing), return_when=asyncio.FIRST_COMPLETED)
            serving = not announcing.done() or announcing.result()
            if not serving:
                supervisor.stop()
            await running
        finally:
            announcing.cancel()
            shown.close_table()
    shown.say("Everything has ended.", "dim")
    return 0 if serving else 1


async def _announce(plan: Plan, supervisor: Supervisor, shown: LaunchConsole, logs: Path) -> bool:
    """Show the processes while they come up, then the box; False when nothing can serve."""
    while not _settled(supervisor.children):
        if _hopeless(supervisor.children):
            shown.close_table()
            shown.say("Nothing can serve; the sentences above say why.", "bold red")
            return False
        shown.show(supervisor.children, time.monotonic())
        if await supervisor.stopped(_REDRAW_S):
            return True
    shown.close_table()
    up = sum(child.state == "ready" for child in _workers(supervisor.children))
    shown.box(
        Box(
            page_url=plan.page_url,
            api_url=f"{plan.api_url}/v1",
            logs=logs,
            models=await _listed(plan.control_url, up),
            missing=[shown.title(child) for child in supervisor.children if child.state != "ready"],
            public_url=await _share_link(supervisor.children[-1]) if plan.shared else None,
        )
    )
    return True


def _workers(children: Sequence[Child]) -> Sequence[Child]:
    """The plan puts the controller first and the page last."""
    return children[1:-1]


def _settled(children: Sequence[Child]) -> bool:
    """Somebody can use it, and whoever is not up has already failed once."""
    needed = children[0].state == children[-1].state == "ready"
    serving = any(child.state == "ready" for child in _workers(children))
    return needed and serving and all(child.state in ("ready", "refused") or child.failures for child in children)


def _hopeless(children: Sequence[Child]) -> bool:
    """A part that everything needs has refused, or every worker has."""
    return any(child.state == "refused" for child in (children[0], children[-1])) or all(
        child.state == "refused" for child in _workers(children)
    )


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code < 400
    except httpx.HTTPError:
        return False


async def _listed(controller_url: str, workers: int) -> list[tuple[str, str]]:
    """Names and notes of the models, once the controller lists as many workers as are up."""
    deadline = time.monotonic() + _LISTED_WITHIN_S
    async with contextlib.aclosing(Client(controller_url)) as client:
        while True:
            cards = ()
            with contextlib.suppress(LlavaError):
                cards = await client.models()
            if sum(card.workers for card in cards) >= workers or time.monotonic() > deadline:
                return [(card.info.name, card.info.note) for card in cards]
            await asyncio.sleep(_REDRAW_S)


async def _share_link(page: Child) -> str | None:
    """The public link as the page's log tells it."""
    deadline = time.monotonic() + _SHARED_WITHIN_S
    while time.monotonic() < deadline:
        if found := _SHARE_LINK.search(page.output):
            return found.group()
        await asyncio.sleep(_REDRAW_S)
    return None


def _stop_on_signals(supervisor: Supervisor, shown: LaunchConsole) -> None:
    """Ctrl-C, a polite kill and a terminal that goes away all end everything; twice means at once."""
    asked = False

    def stop() -> None:
        nonlocal asked
        shown.close_table()
        shown.say("Ending at once." if asked else "Ending everything (again to hurry)…", "yellow")
        asked = True
        supervisor.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Started with nohup it is to outlive its terminal.
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        asyncio.get_running_loop().add_signal_handler(number, stop)
