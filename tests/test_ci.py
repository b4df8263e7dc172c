"""What runs for a change: tests decide whether it passes, and published holes are told so that nobody misses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOLE = {"id": "PYSEC-2099-1", "aliases": ["CVE-2099-1"], "fix_versions": ["2.0"]}


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of which the tests pass, on a machine where nothing can be installed."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    script(tmp_path / "launch.sh", "#!/bin/sh\nexit ${TESTS_END:-0}\n")
    for name in ("apt-get", "sudo"):
        script(tmp_path / "bin" / name, "#!/bin/sh\nexit 1\n")
    finds(tmp_path, [])
    return tmp_path


def finds(folder: Path, holes: list[dict[str, object]]) -> None:
    said = json.dumps({"dependencies": [{"name": "some", "version": "1.0", "vulns": holes}]})
    audit = f"""[ "$2" = pip_audit ] && {{ echo '{said}'; exit 1; }}"""
    script(folder / ".venv" / "bin" / "python", f'#!/bin/sh\n{audit}\nexec {sys.executable} "$@"\n')


def run(folder: Path, name: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **more}
    return subprocess.run(
        [folder / ".ci" / name], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_hole_that_nobody_looked_at_fails_the_audit_and_is_told_loudly_by_the_run(folder: Path) -> None:
    assert run(folder, "audit").returncode == 0
    assert "AUDIT" not in run(folder, "run").stderr
    finds(folder, [HOLE])
    audit = run(folder, "audit")
    assert (audit.returncode, "some 1.0: PYSEC-2099-1, mended in 2.0" in audit.stdout) == (1, True)
    whole = run(folder, "run")
    assert (whole.returncode, "AUDIT FAILED" in whole.stderr) == (0, True)
    assert run(folder, "run", TESTS_END="3").returncode == 3
    with (folder / ".ci" / "audit.md").open("a") as reviewed:
        reviewed.write("| CVE-2099-1 | some | looked at |\n")
    assert run(folder, "audit").returncode == 0
