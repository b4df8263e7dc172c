"""Memory that a training step frees is there for the next one, without asking the system again."""

import platform
import subprocess
import sys

import pytest

_STEPS = """
import resource, sys
import torch
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    from llava_core.train.heap import keep_freed_memory
    keep_freed_memory()

def step():
    held = [torch.ones(size * 2**18) for size in (9, 17, 25, 12) for _ in range(2)]
    del held

for _ in range(3):
    step()
counts = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*counts)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that hands memory back")
def test_a_step_uses_the_pages_of_the_step_before() -> None:
    # Each page that is touched anew is a fault. The system may take some back by itself in any one step, not in all.
    # Where it takes back nothing there is nothing to keep either.
    assert min(_faults("kept")) * 10 <= max(_faults("as it comes"))


def _faults(how: str) -> list[int]:
    """Of each of some steps."""
    ran = subprocess.run([sys.executable, "-c", _STEPS, how], capture_output=True, text=True, timeout=300, check=True)
    return [int(count) for count in ran.stdout.split()]
