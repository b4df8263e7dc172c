"""How the commands end: the exit code and the one sentence, and nothing when whoever read them leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 60.0
APP = """
import sys, time, typer
from llava_core.errors import BadRequest, EngineFailure, MissingDependency
from llava_core.run_command import run_command

app = typer.Typer(pretty_exceptions_enable=False)

@app.command()
def end(how: str) -> None:
    if how == "fail":
        raise EngineFailure("the disk is full")
    if how == "wrong":
        raise BadRequest("there is no such folder")
    if how == "missing":
        raise MissingDependency("pip install it")
    if how == "sleep":
        print("asleep", flush=True)
        time.sleep(60)
    for line in range(100_000 if how == "much" else 1):
        print(line)
    if how == "late":
        sys.stdin.read()

run_command(app)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("script") / "app.py"
    file.write_text(textwrap.dedent(APP))
    return file


def started(script: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), how],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("work", 0, ""),
        ("fail", 1, "error: the disk is full\n"),
        ("wrong", 2, "error: there is no such folder\n"),
        ("missing", 2, "error: pip install it\n"),
    ],
)
def test_an_error_is_one_sentence_and_its_code_says_whether_trying_again_helps(
    script: Path, how: str, code: int, said: str
) -> None:
    process = started(script, how)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (code, said)


def test_ctrl_c_ends_with_130_and_no_traceback(script: Path) -> None:
    process = started(script, "sleep")
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize("how", ["much", "late"])
def test_a_reader_who_leaves_is_no_error(script: Path, how: str) -> None:
    """In the midst of the words, or before any of them left the buffer."""
    process = started(script, how)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert (process.wait(WAIT_S), errors) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        ("llava_core.train", "watch", "no/such/run"),
        ("llava_core.builtin", "rebuild", "--size", "huge", "--out", "no/such/folder"),
        ("llava_core.eval", "builtin", "--model", "no/such/model"),
        ("serve.bench", "load", "no-address"),
        ("llava_core.train", "watch", "--no-such-flag"),
    ],
    ids=" ".join,
)
def test_every_command_ends_with_2_on_bad_input(words: tuple[str, ...]) -> None:
    ran = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert ran.stderr.strip()
