"""What a worker read it gives back: bodies of megabytes leave no trace in its memory."""

import base64
import json
import sys
from pathlib import Path

import httpx
import pytest

from tests.topology import Server, Topology

MIB = 1024 * 1024


def resident(server: Server) -> int:
    """Bytes of the process itself, in memory now."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_refused_pictures_of_megabytes_leave_no_memory_behind(topology: Topology) -> None:
    worker = topology.worker("echo", register=False)
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(25_000_000)).decode()
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": content}]}).encode()
    headers = {"Content-Type": "application/json"}
    before = resident(worker)
    for _ in range(5):
        answer = httpx.post(f"{worker.url}/v1/chat/completions", content=body, headers=headers, timeout=60)
        assert answer.status_code == 400
        assert "limit" in answer.json()["error"]["message"]
    assert resident(worker) - before < 100 * MIB
