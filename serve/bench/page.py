"""What the page server costs for each token that it streams to browsers, beside a page as most are written."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_core.errors import EngineFailure
from serve.bench.children import running, running_controller, until_listed
from serve.bench.page_wire import NaiveChat, OurChat, PageChat
from serve.bench.report import Head

MODEL = "echo"
_WORDS = ("alpha", "bravo", "delta", "echo", "hotel", "india", "lima", "oscar", "tango", "zulu")


@dataclass(frozen=True)
class PagePlan:
    """`chats` people each show `images` pictures of `image_mb` megabytes and then ask what is answered with about
    `tokens` words, `token_ms` between them."""

    chats: int = 20
    images: int = 2
    image_mb: float = 3.0
    tokens: int = 40
    token_ms: float = 50.0
    rounds: int = 1


@dataclass(frozen=True)
class PageFigures:
    """Of one page server, in the measured part: the second question of all chats at once."""

    tokens: int
    cpu_s: float
    wall_s: float

    @property
    def cpu_ms_per_token(self) -> float:
        return 1000 * self.cpu_s / self.tokens


@dataclass(frozen=True)
class PageReport:
    head: Head
    plan: PagePlan
    ours: tuple[PageFigures, ...]
    naive: tuple[PageFigures, ...]
    ratios: tuple[float, ...]
    """Of each round: the naive page's processor time for a token divided by ours."""
    kind: Literal["page"] = "page"


async def bench_page(plan: PagePlan, head: Head, told: Callable[[str], None] = lambda _: None) -> PageReport:
    """Both pages before the same worker, in turns."""
    ours: list[PageFigures] = []
    naive: list[PageFigures] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-page-")))
        pictures = [_picture(folder / f"picture-{number}.png", plan.image_mb) for number in range(plan.images)]
        there = await stack.enter_async_context(running_controller())
        flags = ("--engine", "echo", "--model-name", MODEL, "--echo-delay", str(plan.token_ms / 1000))
        room = ("--limit-model-concurrency", str(plan.chats), "--max-waiting", str(plan.chats))
        await stack.enter_async_context(running("serve.model_worker", (*flags, *room, "--controller", there.url)))
        await until_listed(there.url)
        page_flags = ("--controller", there.url, "--database-url", f"sqlite:///{folder / 'chats.db'}")
        page, page_pid = await stack.enter_async_context(
            running("serve.gradio_web_server", page_flags, ready="/health/live")
        )
        naive_flags = ("--controller", there.url, "--model", MODEL, "--chats", str(plan.chats))
        other, other_pid = await stack.enter_async_context(
            running("serve.bench.naive_page", naive_flags, ready="/config")
        )
        for number in range(plan.rounds):
            told(f"round {number + 1}: ours")
            ours.append(await _measure(plan, lambda: OurChat(page, MODEL), page_pid, pictures))
            told(f"round {number + 1}: naive")
            naive.append(await _measure(plan, lambda: NaiveChat(other), other_pid, pictures))
    ratios = tuple(theirs.cpu_ms_per_token / own.cpu_ms_per_token for own, theirs in zip(ours, naive, strict=True))
    return PageReport(head, plan, tuple(ours), tuple(naive), ratios)


async def _measure(plan: PagePlan, chat: Callable[[], PageChat], pid: int, pictures: Sequence[Path]) -> PageFigures:
    chats = [chat() for _ in range(plan.chats)]
    question = " ".join(_WORDS[place % len(_WORDS)] for place in range(plan.tokens))
    try:
        # One after the other, so that nobody waits for uploads; this part is not measured.
        for each in chats:
            await each.ask("look", pictures)
        before, began = _cpu_s(pid), time.monotonic()
        answers = await asyncio.gather(*(each.ask(question) for each in chats))
        wall, used = time.monotonic() - began, _cpu_s(pid) - before
    finally:
        await asyncio.gather(*(each.aclose() for each in chats))
    if not all(question in answer for answer in answers):
        raise EngineFailure(f"an answer is not what was asked for: {answers[0][:200]!r}")
    return PageFigures(sum(len(answer.split()) for answer in answers), used, wall)


def _picture(path: Path, megabytes: float) -> Path:
    """Noise, which nothing makes smaller."""
    from PIL import Image

    side = max(8, round((megabytes * 1e6 / 3) ** 0.5))
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(path, compress_level=1)
    return path


def _cpu_s(pid: int) -> float:
    """Of a process and those that it started."""
    import psutil

    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(used.user + used.system for used in times)
