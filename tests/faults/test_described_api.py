"""Whatever the descriptions of the two servers allow or forbid, every answer is as described, and none is a failure.

The same for as long as one likes: python -m tests.faults.test_described_api 300
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
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


def fuzz(url: str, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {make_token()}", "--checks", CHECKS, "--max-time", str(seconds)),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--warnings", "off", "--no-color"),
        *("--request-timeout", "60", "--suppress-health-check", "all", "--generation-database", "none"),
        *(word for path in LEFT_OUT for word in ("--exclude-path", path)),
    ]
    # A worker that a busy machine lets fall silent is gone for a moment; to say so is no failure.
    (folder / "schemathesis.toml").write_text(
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 503]\n'
    )
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 400)


@pytest.mark.parametrize("which", ["gateway", "worker"])
def test_every_answer_is_as_the_description_says(topology: Topology, which: str, tmp_path: Path):
    controller = topology.controller()
    worker = topology.worker("echo", delay_s=0.0)
    ran = fuzz(controller.url if which == "gateway" else worker.url, tmp_path, 12)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


def main(seconds: int) -> int:
    with tempfile.TemporaryDirectory() as folder, Topology(Path(folder)) as topology:
        controller = topology.controller()
        worker = topology.worker("echo", delay_s=0.0)
        codes: list[int] = []
        for server in (controller, worker):
            ran = fuzz(server.url, Path(folder), seconds)
            print(ran.stdout)
            codes.append(ran.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
