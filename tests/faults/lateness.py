"""How late this machine comes to its turn while something is timed, so that limits for a quiet one can be held to it.

    with Lateness() as late:
        times = [...]
    assert median(times) < late.allows(0.050), late

A process of its own watches: what our servers do to each other's time counts as theirs and not as the machine's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Self

QUIET_MS = 20.0
"""Up to here (p95) a limit holds as it is."""

# Waits, computes for a moment, and notes how much longer that took than the wait and its own time on a processor.
_WATCH = """
import json, select, sys, time
late = []
while True:
    began, used = time.monotonic(), time.process_time()
    if select.select([sys.stdin], [], [], 0.01)[0]:
        break
    while time.process_time() - used < 0.001:
        pass
    late.append(1000 * max(0.0, time.monotonic() - began - 0.01 - (time.process_time() - used)))
late.sort()
print(json.dumps(late[int(0.95 * (len(late) - 1))] if late else 0.0))
"""


class Lateness:
    p95_ms = 0.0

    def allows(self, limit: float) -> float:
        """`limit`, or as much more as this machine was later than a quiet one."""
        return limit * max(1.0, self.p95_ms / QUIET_MS)

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", "-c", _WATCH]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # It ends with its input, so also when the test is killed.
        told, _ = self._process.communicate(timeout=60)
        self.p95_ms = float(json.loads(told))

    def __str__(self) -> str:
        return f"the machine was {self.p95_ms:.1f} ms late (p95)"
