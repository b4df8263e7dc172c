"""What a container leaves of its machine, from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from llava_core import machine
from llava_core.engines.transformers.memory import is_short
from llava_core.engines.transformers.threads import count_threads

GIB = 1024**3


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 GiB, 200 of them free; 32 cores with two threads each."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64 if logical else 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
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


def quota(root: Path, version: int, most: object, period: int = 100_000) -> None:
    if version == 2:
        write(root, cpu_dot_max=f"{most} {period}")
    else:
        write(root, cpu__cpu_dot_cfs_quota_us=most, cpu__cpu_dot_cfs_period_us=period)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_as_many_threads_as_its_share_of_time_keeps_busy(tmp_path: Path, version: int) -> None:
    for most, found in ((400_000, 4), (350_000, 4), (20_000, 1), (6_400_000, 32)):
        quota(tmp_path, version, most)
        assert machine.cores(tmp_path) == found


@pytest.mark.parametrize(("version", "none"), [(1, -1), (2, "max")])
def test_a_container_without_a_share_of_time_has_all_cores(tmp_path: Path, version: int, none: object) -> None:
    quota(tmp_path, version, none)
    assert machine.cores(tmp_path) == machine.cores(tmp_path / "nowhere") == 32


def test_cores_that_a_process_is_not_bound_to_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert machine.cores(tmp_path) == 3


def test_the_model_takes_what_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_share_of_time", lambda cgroup: 4)
    assert count_threads(None) == 4
    assert count_threads(8) == 8
