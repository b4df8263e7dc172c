"""Uploaded pictures go with the page that had them, also when it is killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serve.page.upload_folder import upload_folder
from tests.topology import ROOT

HOLDER = """
import sys
from serve.page.upload_folder import upload_folder
with upload_folder() as folder:
    (folder / "picture").write_text("mine")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)


def test_what_a_killed_page_left_is_deleted_and_what_another_one_uses_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    killed, left = holder()
    alive, used = holder()
    try:
        killed.kill()
        killed.wait(60)
        assert (left / "picture").exists()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        link = tmp_path / "llava-serve-page-link"
        link.symlink_to(elsewhere)
        with upload_folder() as folder:
            assert not left.exists()
            assert (used / "picture").exists()
            assert elsewhere.exists()
            assert folder.stat().st_mode & 0o077 == 0
        assert not folder.exists()
    finally:
        end(killed)
        end(alive)
    assert not used.exists()
