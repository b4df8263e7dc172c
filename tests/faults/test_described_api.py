"""Whatever the descriptions of the two servers allow or forbid, every answer is as described, and none is a failure.

The same for as long as one likes: python -m tests.faults.test_described_api 300
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve.credentials import make_token
from tests.topology import Topology

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
# An answer without end, which holds a worker's line; what Prometheus describes; what may leave nobody to answer.
LEFT_OUT = ("/hold_worker_line", "/metrics", "/deregister_worker", "/refresh_all_workers")


@dataclass(frozen=True)
class Target:
    """Whose description is taken, where its requests go, which paths are among them, and what may be answered where
    nobody has what was asked for. With workers that are up, the API always has somebody."""

    described_at: str
    asked_at: str
    paths: tuple[str, ...] = ()
    may_be_unavailable: bool = False


WHICH = ("the API", "the control plane", "a worker")


def target(which: str, topology: Topology) -> Target:
    """Each with servers of its own: what is registered at one by a stranger to it is no worker of another."""
    controller = topology.controller()
    worker = topology.worker("echo", delay_s=0.0)
    if which == "the API":
        topology.worker("echo", delay_s=0.0)
        return Target(controller.url, topology.api_url, ("--include-path-regex", "^/v1"))
    if which == "the control plane":
        return Target(controller.url, controller.url, ("--exclude-path-regex", "^/v1"), may_be_unavailable=True)
    return Target(worker.url, worker.url)


def fuzz(at: Target, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{at.described_at}/openapi.json", "--url", at.asked_at),
        *("--header", f"Authorization: Bearer {make_token()}", "--checks", CHECKS, "--max-time", str(seconds)),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--warnings", "off", "--no-color"),
        *("--request-timeout", "60", "--suppress-health-check", "all", "--generation-database", "none"),
        *(word for path in LEFT_OUT for word in ("--exclude-path", path)),
        *at.paths,
    ]
    expected = ["2xx", "3xx", "4xx", *([503] if at.may_be_unavailable else [])]
    (folder / "schemathesis.toml").write_text(
        f"[checks.not_a_server_error]\nexpected-statuses = {json.dumps(expected)}\n"
    )
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 400)


@pytest.mark.parametrize("which", WHICH)
def test_every_answer_is_as_the_description_says(topology: Topology, which: str, tmp_path: Path):
    at = target(which, topology)
    ran = fuzz(at, tmp_path, 9)
    if ran.returncode != 0 and workers_were_lost(topology):
        # They stood still longer than a worker may: not what was to be tried.
        ran = fuzz(at, tmp_path, 9)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    print(f"\n{which}: {' '.join(ran.stdout.split()[-40:])}")


def workers_were_lost(topology: Topology) -> bool:
    log = topology.servers[0].log_text()
    return "others take its work" in log or "no longer listed" in log


def main(seconds: int) -> int:
    codes: list[int] = []
    for which in WHICH:
        with tempfile.TemporaryDirectory() as folder, Topology(Path(folder)) as topology:
            ran = fuzz(target(which, topology), Path(folder), seconds)
            print(ran.stdout)
            codes.append(ran.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
