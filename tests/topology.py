"""A real topology for tests: controller, workers and page as processes of their own on free ports.

    with Topology(tmp_path) as servers:                 # or the fixture `topology` of tests/conftest.py
        controller = servers.controller()               # ready when it returns
        slow = servers.worker("slow", delay_s=0.2)      # an echo worker, ready and listed when it returns
        two = servers.worker("fast", extra=("--max-waiting", "0"))
        alone = servers.worker("alone", register=False)
        page = servers.page()                           # the Gradio page on that controller

    controller.url  two.pid  two.log_text()             # where it is, which process, what it said
    two.kill()          # SIGKILL
    two.stop()          # SIGTERM, waits; gives the exit code
    two.signal(signal.SIGSTOP)
    two.wait()          # the exit code, once it has ended by itself
    controller = servers.controller(port=controller.port)   # again on the same port

`worker(name)` starts `--engine echo`; with `model_path=` it loads a checkpoint instead. Everything that still runs
when the block is left is ended by its id. A process that dies before it is ready fails the test with its log.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from serve.credentials import make_token

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 60.0
PAGE_READY_WITHIN_S = 120.0
STOPPED_WITHIN_S = 40.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def token_header() -> dict[str, str]:
    """What shows servers of these tests that one belongs to them; see the fixture `data_folder`."""
    return {"Authorization": f"Bearer {make_token()}"}


@dataclass
class Server:
    """One running process and the address it listens on."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOPPED_WITHIN_S) -> int:
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOPPED_WITHIN_S)

    def until_ready(self, path: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log_text()}")
            try:
                if httpx.get(self.url + path, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{self.name} was not ready after {timeout_s:.0f} s:\n{self.log_text()}")


@dataclass
class Topology:
    folder: Path
    servers: list[Server] = field(default_factory=list)
    controller_url: str = ""
    api_url: str = ""

    def controller(self, *, port: int | None = None, extra: Sequence[str] = ()) -> Server:
        server = self.start_controller(port=port, extra=extra)
        server.until_ready("/health/live", READY_WITHIN_S)
        return server

    def start_controller(self, *, port: int | None = None, extra: Sequence[str] = ()) -> Server:
        """At once. Its `port` is the control plane's, which has the API too; `api_url` is where everybody comes."""
        api = free_port()
        server = self.start("controller", "serve.controller", ("--port", str(api), *extra), port=port, kind="control-")
        self.controller_url, self.api_url = server.url, f"http://127.0.0.1:{api}"
        return server

    def worker(
        self,
        model: str = "echo",
        *,
        delay_s: float = 0.01,
        first_s: float = 0.0,
        register: bool = True,
        model_path: str | Path | None = None,
        port: int | None = None,
        extra: Sequence[str] = (),
        wait: bool = True,
    ) -> Server:
        """Ready and, with `register`, on the controller's list when it returns; at once where `wait` is False."""
        flags = ["--model-name", model]
        if model_path is None:
            flags += ["--engine", "echo", "--echo-delay", str(delay_s), "--echo-first", str(first_s)]
        else:
            flags += ["--model-path", str(model_path)]
        flags += ["--controller", self.controller_url] if register else ["--no-register"]
        server = self.start(f"worker-{model}", "serve.model_worker", (*flags, *extra), port=port)
        if wait:
            server.until_ready("/health/ready", READY_WITHIN_S)
            if register:
                self.until_listed(server)
        return server

    def page(self, *, port: int | None = None, extra: Sequence[str] = ()) -> Server:
        kept = () if "--database-url" in extra else ("--database-url", f"sqlite:///{self.folder}/chats.db")
        flags = ("--controller", self.controller_url, *kept, *extra)
        server = self.start("page", "serve.gradio_web_server", flags, port=port)
        server.until_ready("/", PAGE_READY_WITHIN_S)
        return server

    def start(self, name: str, module: str, flags: Sequence[str], *, port: int | None = None, kind: str = "") -> Server:
        """Any module of ours that takes `--host` and `--port`, with `kind` before their names; not ready yet."""
        port = port or free_port()
        log = self.folder / f"{name}-{len(self.servers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, f"--{kind}host", "127.0.0.1", f"--{kind}port", str(port), *flags],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(name, port, process, log)
        self.servers.append(server)
        return server

    def until_listed(self, worker: Server, *, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            body = {"worker_name": worker.url}
            answer = httpx.post(
                f"{self.controller_url}/worker_is_listed", json=body, headers=token_header(), trust_env=False
            )
            if answer.json().get("exist"):
                return
            time.sleep(0.02)
        raise AssertionError(f"{worker.name} did not register:\n{worker.log_text()}")

    def close(self) -> None:
        """End what still runs: politely, page and workers before the controller, then for good."""
        running = [server for server in reversed(self.servers) if server.process.poll() is None]
        for server in running:
            server.signal(signal.SIGCONT)
            server.signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for server in running:
            try:
                server.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                server.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
