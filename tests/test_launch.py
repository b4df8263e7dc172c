"""The whole topology through its one command: it comes up, answers, mends itself, and leaves nobody behind."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from serve.launcher.default import embedded_default
from tests.topology import token_header

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 90.0


def free_ports(count: int) -> list[int]:
    """Ports that follow each other and are free just now."""
    for base in range(20000 + os.getpid() % 10000, 60000, count):
        try:
            for port in range(base, base + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return list(range(base, base + count))
    raise AssertionError("no free ports")


class Launched:
    """A running launcher and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self._output = process, output

    @property
    def text(self) -> str:
        return self._output.read_text()

    def until(self, enough: Callable[[str], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not enough(self.text):
            assert self.process.poll() is None, f"the launcher has ended:\n{self.text}"
            assert time.monotonic() < deadline, f"waited in vain:\n{self.text}"
            time.sleep(0.05)

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextmanager
def launched(tmp_path: Path, *arguments: str) -> Iterator[Launched]:
    output = tmp_path / "output.txt"
    command = [sys.executable, "-m", "serve.launch", "--logs", str(tmp_path / "logs"), *arguments]
    with output.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield Launched(process, output)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def ask(api: str, text: str, headers: dict[str, str] | None = None) -> str:
    body = {"model": "parrot", "messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{api}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_the_topology_comes_up_answers_mends_itself_and_ends_without_a_trace(tmp_path: Path) -> None:
    page, controller, control, worker, _ = free_ports(5)
    ports = ("--port", str(page), "--controller-port", str(controller), "--worker-port", str(worker))
    ports = (*ports, "--control-port", str(control))
    with launched(tmp_path, "--engine", "echo", "--model", "parrot", "--model", "crow", *ports) as launcher:
        launcher.until(lambda text: "LLaVA Serve is ready" in text and "Ctrl-C" in text)
        assert f"http://127.0.0.1:{page}" in launcher.text
        assert re.search(r"crow +echo: no model", launcher.text)
        assert httpx.get(f"http://127.0.0.1:{page}/", timeout=30).status_code == 200
        assert "You said: hello" in ask(f"http://127.0.0.1:{controller}", "hello")

        first = re.search(r"worker 1 \(parrot\): starting \(pid (\d+)\)", launcher.text)
        assert first
        os.kill(int(first[1]), signal.SIGKILL)
        launcher.until(lambda text: "worker 1 (parrot): was ended by signal 9" in text)
        launcher.until(lambda text: text.count("worker 1 (parrot): ready") == 2)
        assert "You said: again" in ask(f"http://127.0.0.1:{worker}", "again", token_header())

        family = psutil.Process(launcher.process.pid).children(recursive=True)
        assert len(family) >= 4
        launcher.process.send_signal(signal.SIGINT)
        assert launcher.end() == 0
        _, left = psutil.wait_procs(family, timeout=5)
        assert left == []
        assert not any(child.is_running() for child in family)
        assert "Everything has ended." in launcher.text
    for name in ("controller", "worker-1", "worker-2", "page"):
        assert (tmp_path / "logs" / f"{name}.log").read_text().startswith("--- ")


@pytest.mark.slow
def test_a_folder_that_is_no_checkpoint_is_refused_on_the_console_in_the_worker_s_own_words(tmp_path: Path) -> None:
    empty = tmp_path / "not-a-model"
    empty.mkdir()
    page, controller, control, worker = map(str, free_ports(4))
    ports = ("--port", page, "--controller-port", controller, "--control-port", control, "--worker-port", worker)
    with launched(tmp_path, "--model", str(empty), *ports) as launcher:
        assert launcher.end() == 1
        assert "worker 1 (not-a-model): " in launcher.text
        assert "config.json" in launcher.text
        assert "Nothing can serve" in launcher.text
        assert "Traceback" not in launcher.text


def test_a_named_port_that_is_taken_ends_the_launch_with_the_holder_s_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with launched(tmp_path, "--engine", "echo", "--port", str(port)) as launcher:
            assert launcher.end() == 2
            assert f"port {port} is taken by pid {os.getpid()}" in launcher.text
            assert len(launcher.text.splitlines()) == 1


def test_a_wrong_model_is_one_sentence_and_nothing_starts(tmp_path: Path) -> None:
    with launched(tmp_path, "--model", "./nowhere") as launcher:
        assert launcher.end() == 2
        assert launcher.text.startswith("error: --model ./nowhere: there is no folder")
        assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_the_built_in_model_is_built_once_and_says_what_it_is(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    first = embedded_default(console, tmp_path)
    assert first.path is not None
    assert (Path(first.path) / "config.json").is_file()
    assert [folder.name for folder in tmp_path.iterdir()] == [Path(first.path).name]
    built = Path(first.path).stat().st_mtime_ns
    assert embedded_default(console, tmp_path) == first
    assert Path(first.path).stat().st_mtime_ns == built
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert said.count("Building") == 1
    assert said.count("weights are random") == 2


def test_the_launcher_does_not_import_torch() -> None:
    code = "import sys, serve.launch, serve.cli; print(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
