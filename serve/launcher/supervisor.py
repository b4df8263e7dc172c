"""Child processes kept running: started, watched until ready, restarted with back-off when they die, ended together.

Every child leads a process group of its own, so that what it starts ends with it, and a Ctrl-C in the terminal
reaches only the supervisor, which ends the children in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serve.launcher.logs import last_words, open_log, read_tail

State = Literal["waiting", "starting", "ready", "refused", "ended"]
Probe = Callable[[str], Awaitable[bool]]

REFUSED = 2
"""The exit code of a child whose command line or checkpoint is wrong: starting it again would end the same, unless
it worked before."""


@dataclass(frozen=True)
class Backoff:
    """How long to wait before the next start, in seconds. A child that ran for `healthy_s` starts afresh."""

    first_s: float = 1.0
    most_s: float = 60.0
    healthy_s: float = 60.0

    def wait(self, failures: int) -> float:
        """Before the start after `failures` failures in a row."""
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))

    def count(self, failures: int, ran_s: float) -> int:
        """Failures in a row, now that the child has died again after `ran_s`."""
        return 1 if ran_s >= self.healthy_s else failures + 1


@dataclass(frozen=True)
class Stopping:
    """Seconds: for children asked to end, for the kernel once they are killed, between two readiness probes."""

    grace_s: float = 10.0
    kill_s: float = 5.0
    probe_every_s: float = 0.25


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep running. `variables` come on top of our own environment; lower `rank`s are ended first.
    `grace_s` is how long it may take to end where that is not as long as for all others."""

    name: str
    argv: tuple[str, ...]
    ready_url: str
    log: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None
    rank: int = 0
    grace_s: float | None = None


@dataclass
class Child:
    """A child as it stands. `since` is when its state began, `failures` how often in a row it died."""

    spec: ChildSpec
    state: State = "waiting"
    since: float = 0.0
    pid: int | None = None
    failures: int = 0
    was_ready: bool = False
    log_start: int = 0
    """Where in its log the present run begins."""

    @property
    def output(self) -> str:
        """The end of what the present run wrote."""
        return read_tail(self.spec.log, self.log_start)


@dataclass(frozen=True)
class Event:
    """Something a person would want to be told. `why` is what a dead child said last, `retry_s` the wait before the
    next start."""

    kind: Literal["started", "ready", "died", "refused", "killed"]
    child: Child
    took_s: float = 0.0
    code: int = 0
    why: str = ""
    retry_s: float = 0.0


class Supervisor:
    """Runs children until told to stop. All methods belong to one event loop."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        probe: Probe,
        tell: Callable[[Event], None],
        backoff: Backoff | None = None,
        stopping: Stopping | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.children = [Child(spec, since=clock()) for spec in specs]
        self._probe, self._tell, self._clock = probe, tell, clock
        self._backoff, self._waits = backoff or Backoff(), stopping or Stopping()
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """End everything; a second call does not wait for those that take their time."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def stopped(self, within_s: float | None = None) -> bool:
        """Wait for a call of `stop`, at most `within_s` seconds; whether it came."""
        return await _happens(self._stop, within_s)

    async def run(self) -> None:
        """Returns when `stop` was called and no child is left."""
        async with asyncio.TaskGroup() as group:
            for child in self.children:
                group.create_task(self._keep(child))

    async def _keep(self, child: Child) -> None:
        while not self._stop.is_set():
            began = self._clock()
            code, why = await self._run_once(child, began)
            if code is None:
                break
            ran_s = self._clock() - began
            if code == REFUSED and not child.was_ready:
                self._enter(child, "refused")
                self._tell(Event("refused", child, took_s=ran_s, code=code, why=why))
                await self._stop.wait()
                break
            child.failures = self._backoff.count(child.failures, ran_s)
            wait = self._backoff.wait(child.failures)
            self._enter(child, "waiting")
            self._tell(Event("died", child, took_s=ran_s, code=code, why=why, retry_s=wait))
            await self.stopped(wait)
        self._enter(child, "ended")

    async def _run_once(self, child: Child, began: float) -> tuple[int | None, str]:
        """The exit code and last words of one run; no code when it was we who ended it."""
        try:
            process = await self._start(child)
        except OSError as error:
            return 1, f"could not be started: {error}"
        try:
            code = await self._watch(child, process, began)
        finally:
            await self._end(child, process)
            child.pid = None
        # One that a signal ended had no time to say why; what it said last was about something else.
        return code, "" if code is None or code < 0 else last_words(child.output)

    async def _start(self, child: Child) -> asyncio.subprocess.Process:
        spec = child.spec
        with open_log(spec.log, spec.argv) as log:
            child.log_start = log.tell()
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=spec.cwd,
                env=os.environ | {"PYTHONUNBUFFERED": "1", **spec.variables},
                start_new_session=True,
                preexec_fn=_ends_with_parent(),
            )
        child.pid = process.pid
        self._enter(child, "starting")
        self._tell(Event("started", child))
        return process

    async def _watch(self, child: Child, process: asyncio.subprocess.Process, began: float) -> int | None:
        died = asyncio.create_task(process.wait())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while not died.done() and not stopped.done():
                pause = None
                if child.state == "starting":
                    pause = self._waits.probe_every_s
                    if await self._probe(child.spec.ready_url) and not died.done():
                        child.was_ready = True
                        self._enter(child, "ready")
                        self._tell(Event("ready", child, took_s=self._clock() - began))
                        pause = None
                await asyncio.wait((died, stopped), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            return None if stopped.done() else died.result()
        finally:
            died.cancel()
            stopped.cancel()

    async def _end(self, child: Child, process: asyncio.subprocess.Process) -> None:
        """Ask the whole group to end, then make it; also sweeps up what a dead leader left behind."""
        if process.returncode is None:
            await self._those_before(child)
            _signal_group(process.pid, signal.SIGTERM)
            ended = asyncio.Event()
            waiting = asyncio.create_task(process.wait())
            waiting.add_done_callback(lambda _: ended.set())
            if not await _happens(ended, self._grace_of(child), or_else=self._hurry):
                self._tell(Event("killed", child))
        _signal_group(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._waits.kill_s)

    async def _those_before(self, child: Child) -> None:
        """Wait for children of lower rank: a worker says goodbye to the controller, so the controller goes last."""
        before = [other for other in self.children if other.spec.rank < child.spec.rank]
        deadline = self._clock() + max(map(self._grace_of, before), default=0.0)
        while any(other.pid is not None for other in before) and self._clock() < deadline:
            if await _happens(self._hurry, 0.05):
                return

    def _grace_of(self, child: Child) -> float:
        return self._waits.grace_s if child.spec.grace_s is None else child.spec.grace_s

    def _enter(self, child: Child, state: State) -> None:
        child.state, child.since = state, self._clock()


async def _happens(event: asyncio.Event, within_s: float | None, *, or_else: asyncio.Event | None = None) -> bool:
    """Whether `event` is set within `within_s`; `or_else` ends the wait early."""
    waits = [asyncio.create_task(each.wait()) for each in (event, or_else) if each is not None]
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return event.is_set()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _ends_with_parent() -> Callable[[], None] | None:
    """Where the kernel can (Linux), a child is told to end when the supervisor is killed without a chance to say so."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def in_child() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return in_child
