"""What a figure was measured on: processor, cores, threads, versions, and who else was busy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_PACKAGES = ("torch", "transformers")
_SECRET = "--api-key"


@dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    """Physical ones that this process may use."""
    memory_gb: float
    load_before: float
    """Processes that wanted a core, averaged over the minute before; more than 0 means that others were busy too."""
    python: str
    packages: dict[str, str]
    torch_threads: int | None = None
    """Of an engine in this process; None where the model runs elsewhere."""
    device: str = ""


def this_machine(*, torch_threads: int | None = None, device: str = "") -> Machine:
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        processor=_processor(),
        cores=min(psutil.cpu_count(logical=False) or allowed, allowed),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        load_before=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        torch_threads=torch_threads,
        device=device,
    )


def describe_machine(machine: Machine) -> str:
    """One line for people."""
    parts = [
        machine.device,
        machine.processor,
        f"{machine.cores} cores",
        f"{machine.torch_threads} torch threads" if machine.torch_threads else "",
        f"{machine.memory_gb:g} GB",
        f"Python {machine.python}",
        *(f"{name} {version}" for name, version in machine.packages.items()),
        f"load average before {machine.load_before:g}",
    ]
    return ", ".join(part for part in parts if part)


def this_command() -> str:
    """How to do it again; without a key that was given."""
    words = ["python -m serve.bench", *sys.argv[1:]]
    shown: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        secret = before == _SECRET or word.startswith(_SECRET + "=")
        shown.append(
            "…" if secret else word if (word.isprintable() and " " not in word) or word is words[0] else repr(word)
        )
    return " ".join(shown)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
