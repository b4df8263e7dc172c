"""Keeps memory that a step gives back, for the next step: on a CPU, fresh pages cost more than the work done in them.

Samples of differing length ask for buffers of differing sizes. glibc hands the end of its heap back to the system
whenever enough of it is free, which is many times a step, and every page that is asked for again is first cleared: on
a virtual machine that took two thirds of a step. The price is that a run's memory stays at its highest.
"""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""mallopt's own numbers for them."""
_KEPT_BYTES = 2**31 - 1
_STEP_BYTES = 64 * 2**20
_LARGEST_IN_HEAP = 32 * 2**20
"""Of buffers that are kept; glibc takes no more than this."""


def keep_freed_memory() -> None:
    """For the rest of this process. Without glibc nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_TOP_PAD, _STEP_BYTES)
