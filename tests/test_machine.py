"""What a container leaves of its machine, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from llava_core import machine
from llava_core.engines.transformers.memory import is_short

GIB = 1024**3


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 GiB, 200 of them free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=256 * GIB, available=200 * GIB))


def write(root: Path, **files: object) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def limit_memory(root: Path, version: int, limit: object, used: int, cached: int) -> None:
    if version == 2:
        stat = f"anon {used - cached}\nactive_file 0\ninactive_file {cached}"
        write(root, memory_dot_max=limit, memory_dot_current=used, memory_dot_stat=stat)
    else:
        stat = f"inactive_file 7\ntotal_inactive_file {cached}"
        names = ("memory__memory_dot_limit_in_bytes", "memory__memory_dot_usage_in_bytes", "memory__memory_dot_stat")
        write(root, **dict(zip(names, (limit, used, stat), strict=True)))


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_is_measured_by_its_own_limit(tmp_path: Path, version: int) -> None:
    limit_memory(tmp_path, version, 8 * GIB, 4 * GIB, 0)
    assert machine.memory(tmp_path) == machine.Memory(8 * GIB, 4 * GIB)
    # Half of a container of 8 GiB is free, though that is little of the machine.
    assert not is_short(tmp_path)
    limit_memory(tmp_path, version, 8 * GIB, 8 * GIB - 1000, 0)
    assert is_short(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_were_read_are_free_memory(tmp_path: Path, version: int) -> None:
    limit_memory(tmp_path, version, 8 * GIB, 8 * GIB, 3 * GIB)
    assert machine.memory(tmp_path).free == 3 * GIB
    assert not is_short(tmp_path)


@pytest.mark.parametrize(("version", "none"), [(1, 2**63 - 4096), (2, "max")])
def test_a_container_without_a_limit_has_the_machines_memory(tmp_path: Path, version: int, none: object) -> None:
    limit_memory(tmp_path, version, none, 4 * GIB, 0)
    assert machine.memory(tmp_path) == machine.memory(tmp_path / "nowhere") == machine.Memory(256 * GIB, 200 * GIB)


def test_a_container_does_not_have_more_than_its_machine(tmp_path: Path) -> None:
    limit_memory(tmp_path, 2, 512 * GIB, 4 * GIB, 0)
    assert machine.memory(tmp_path) == machine.Memory(256 * GIB, 200 * GIB)
