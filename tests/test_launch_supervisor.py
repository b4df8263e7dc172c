"""The supervisor with real child processes: readiness, restarts, refusals, and an end that leaves nobody behind."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve.launcher.logs import last_words, read_tail, rotate, without_stamp
from serve.launcher.supervisor import Backoff, Child, ChildSpec, Event, Stopping, Supervisor

SOON = Backoff(first_s=0.01, most_s=0.05)
PATIENCE_S = 20.0


def spec(tmp_path: Path, code: str, name: str = "child", **more: Any) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", code), "ready", tmp_path / f"{name}.log", **more)


class Watcher:
    """Events as they come, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def kinds(self, name: str = "child") -> list[str]:
        return [event.kind for event in self.events if event.child.spec.name == name]

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not enough():
                self._news.clear()
                await self._news.wait()


async def always(url: str) -> bool:
    return True


async def never(url: str) -> bool:
    return False


@asynccontextmanager
async def supervised(supervisor: Supervisor) -> AsyncIterator[None]:
    running = asyncio.create_task(supervisor.run())
    try:
        yield
    finally:
        supervisor.stop()
        await asyncio.wait_for(running, PATIENCE_S)


def is_gone(pid: int) -> bool:
    """Whether the process has ended, or ends within our patience: a kill takes effect when the kernel gets to it."""
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_back_off_doubles_to_a_limit_and_starts_afresh_after_a_healthy_run() -> None:
    backoff = Backoff(first_s=1, most_s=60, healthy_s=60)
    assert [backoff.wait(failures) for failures in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]
    assert backoff.count(5, ran_s=59) == 6
    assert backoff.count(5, ran_s=61) == 1


async def test_a_child_is_ready_when_its_probe_says_so(tmp_path: Path) -> None:
    watcher, answers = Watcher(), iter([False, False, True])

    async def probe(url: str) -> bool:
        return next(answers)

    supervisor = Supervisor(
        [spec(tmp_path, "import time; time.sleep(60)")],
        probe=probe,
        tell=watcher.tell,
        stopping=Stopping(probe_every_s=0.01),
    )
    async with supervised(supervisor):
        await watcher.until(lambda: "ready" in watcher.kinds())
    assert watcher.kinds() == ["started", "ready"]
    assert supervisor.children[0].state == "ended"


async def test_a_child_that_dies_is_started_again_and_its_last_words_are_told(tmp_path: Path) -> None:
    watcher = Watcher()
    code = "import sys; print('INFO: loading'); sys.exit('the disk is full')"
    supervisor = Supervisor([spec(tmp_path, code)], probe=never, tell=watcher.tell, backoff=SOON)
    async with supervised(supervisor):
        await watcher.until(lambda: watcher.kinds().count("died") >= 3)
    deaths = [event for event in watcher.events if event.kind == "died"]
    assert [death.why for death in deaths[:3]] == ["the disk is full"] * 3
    assert [death.retry_s for death in deaths[:3]] == [0.01, 0.02, 0.04]
    assert (tmp_path / "child.log").read_text().count("\nINFO: loading\n") == len(deaths)


async def test_a_child_killed_from_outside_comes_back(tmp_path: Path) -> None:
    watcher = Watcher()
    supervisor = Supervisor(
        [spec(tmp_path, "import time; time.sleep(60)")], probe=always, tell=watcher.tell, backoff=SOON
    )
    async with supervised(supervisor):
        await watcher.until(lambda: "ready" in watcher.kinds())
        first = supervisor.children[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await watcher.until(lambda: watcher.kinds().count("ready") == 2)
        assert supervisor.children[0].pid != first
    death = next(event for event in watcher.events if event.kind == "died")
    assert death.code == -signal.SIGKILL


async def test_a_child_that_refuses_is_left_alone(tmp_path: Path) -> None:
    watcher = Watcher()
    code = "import sys; print('error: no such checkpoint', file=sys.stderr); sys.exit(2)"
    supervisor = Supervisor([spec(tmp_path, code)], probe=never, tell=watcher.tell, backoff=SOON)
    async with supervised(supervisor):
        await watcher.until(lambda: "refused" in watcher.kinds())
    assert watcher.kinds() == ["started", "refused"]
    assert watcher.events[-1].why == "error: no such checkpoint"


async def test_a_child_that_was_ready_before_is_tried_again_even_when_it_refuses(tmp_path: Path) -> None:
    watcher, once = Watcher(), tmp_path / "once"
    code = (
        f"import os, sys, time; os.path.exists({str(once)!r}) and sys.exit(2); open({str(once)!r}, 'w'); time.sleep(60)"
    )

    async def probe(url: str) -> bool:
        return once.exists()

    supervisor = Supervisor([spec(tmp_path, code)], probe=probe, tell=watcher.tell, backoff=SOON)
    async with supervised(supervisor):
        await watcher.until(lambda: "ready" in watcher.kinds())
        os.kill(supervisor.children[0].pid or 0, signal.SIGKILL)
        await watcher.until(lambda: watcher.kinds().count("died") == 2)
        once.unlink()
        await watcher.until(lambda: watcher.kinds().count("ready") == 2)
    assert "refused" not in watcher.kinds()


async def test_a_command_that_is_not_there_counts_as_a_death(tmp_path: Path) -> None:
    watcher = Watcher()
    wrong = ChildSpec("child", ("/nowhere/python",), "ready", tmp_path / "child.log")
    supervisor = Supervisor([wrong], probe=never, tell=watcher.tell, backoff=SOON)
    async with supervised(supervisor):
        await watcher.until(lambda: "died" in watcher.kinds())
    assert "could not be started" in watcher.events[0].why


async def test_the_end_takes_grandchildren_along_and_kills_who_will_not_go(tmp_path: Path) -> None:
    watcher, pids = Watcher(), tmp_path / "pids"
    stubborn = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}')\n"
        "time.sleep(60)"
    )

    async def probe(url: str) -> bool:
        return pids.exists() and len(pids.read_text().split()) == 2

    supervisor = Supervisor(
        [spec(tmp_path, stubborn)], probe=probe, tell=watcher.tell, stopping=Stopping(grace_s=0.2, probe_every_s=0.01)
    )
    async with supervised(supervisor):
        await watcher.until(lambda: "ready" in watcher.kinds())
    assert watcher.kinds()[-1] == "killed"
    for pid in pids.read_text().split():
        assert is_gone(int(pid))


async def test_a_child_that_has_answers_to_finish_may_take_longer_than_the_others(tmp_path: Path) -> None:
    watcher, here, done = Watcher(), tmp_path / "here", tmp_path / "done"
    code = (
        "import pathlib, signal, time\n"
        f"def finish(*_): time.sleep(1); pathlib.Path({str(done)!r}).touch(); raise SystemExit\n"
        f"signal.signal(15, finish); pathlib.Path({str(here)!r}).touch(); time.sleep(60)"
    )

    async def probe(url: str) -> bool:
        return here.exists()

    patient = replace(spec(tmp_path, code), grace_s=60)
    supervisor = Supervisor([patient], probe=probe, tell=watcher.tell, stopping=Stopping(grace_s=0.1))
    async with supervised(supervisor):
        await watcher.until(lambda: "ready" in watcher.kinds())
    assert done.exists()
    assert "killed" not in watcher.kinds()


async def test_a_second_stop_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    watcher, here = Watcher(), tmp_path / "here"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(here)!r}, 'w'); time.sleep(60)"

    async def probe(url: str) -> bool:
        return here.exists()

    supervisor = Supervisor([spec(tmp_path, code)], probe=probe, tell=watcher.tell, stopping=Stopping(grace_s=3600))
    async with supervised(supervisor):
        await watcher.until(lambda: "ready" in watcher.kinds())
        supervisor.stop()
    assert watcher.kinds()[-1] == "killed"


async def test_children_of_lower_rank_have_ended_before_the_others_are_asked_to(tmp_path: Path) -> None:
    watcher, order, up = Watcher(), tmp_path / "order", tmp_path / "up"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    time.sleep(float(sys.argv[2])); open({str(order)!r}, 'a').write(sys.argv[1] + ' '); sys.exit()\n"
        "signal.signal(15, end)\n"
        f"open({str(up)!r}, 'a').write('x')\n"
        "time.sleep(60)"
    )
    first = spec(tmp_path, code, "worker")
    last = spec(tmp_path, code, "controller", rank=1)
    specs = [
        ChildSpec(each.name, (*each.argv, each.name, pause), "ready", each.log, rank=each.rank)
        for each, pause in ((last, "0"), (first, "0.3"))
    ]

    async def probe(url: str) -> bool:
        return up.exists() and len(up.read_text()) == 2

    supervisor = Supervisor(specs, probe=probe, tell=watcher.tell)
    async with supervised(supervisor):
        await watcher.until(lambda: all(child.state == "ready" for child in supervisor.children))
    assert order.read_text().split() == ["worker", "controller"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can tell children of a parent's death")
def test_children_do_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from serve.launcher.supervisor import ChildSpec, Supervisor\n"
        f"log = Path({str(tmp_path)!r}) / 'log'\n"
        "child = ChildSpec('c', (sys.executable, '-c', 'import time; time.sleep(60)'), '', log)\n"
        "async def yes(url): return True\n"
        f"tell = lambda event: Path({str(pidfile)!r}).write_text(str(event.child.pid) + '.')\n"
        "asyncio.run(Supervisor([child], probe=yes, tell=tell).run())"
    )
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", program])
    deadline = time.monotonic() + PATIENCE_S

    def child_pid() -> int | None:
        text = pidfile.read_text() if pidfile.exists() else ""
        return int(text[:-1]) if text.endswith(".") else None

    while child_pid() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    child = child_pid()
    assert child is not None
    assert is_gone(child)


def test_a_long_log_is_moved_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    for text in ("one", "two", "three", "four"):
        log.write_text(text)
        rotate(log, most_bytes=3, keep=2)
        assert not log.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log.1", "x.log.2"]
    assert (tmp_path / "x.log.1").read_text() == "four"
    log.write_text("ab")
    rotate(log, most_bytes=3)
    assert log.read_text() == "ab"


def test_last_words_are_what_was_said_at_the_end_outside_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("the run before\n")
    start = log.stat().st_size
    with log.open("a") as more:
        more.write("2026-01-01 10:00:00,1 INFO x: up\n 50%|#  |\r100%|###|\r\n")
        more.write("\x1b[31mno weights in x:\x1b[0m\n  a.txt\n\n")
    assert last_words(read_tail(log, start)) == "no weights in x:\n  a.txt"
    broken = "INFO: up\nTraceback (most recent call last):\n  File x\nRuntimeError: boom\nwarning: leaked\n"
    assert last_words(broken) == "RuntimeError: boom"
    assert last_words("2026-01-01 10:00:00,1 ERROR x: lost\n") == "2026-01-01 10:00:00,1 ERROR x: lost"
    assert last_words("") == ""
    assert without_stamp("2026-01-01 10:00:00,123 INFO serve.model_worker: listening") == "listening"
    assert without_stamp("Loading weights: 50%") == "Loading weights: 50%"
    assert Child(spec(tmp_path, ""), log_start=10**9).output == ""
