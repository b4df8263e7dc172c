"""Rates that several servers count together, in a Redis of our own where it is installed, and what its loss costs."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_core.errors import BadRequest
from serve import quotas as quotas_module
from serve.quota import Quota
from serve.quotas import Quotas
from tests.faults.test_quotas import refusal, scope
from tests.topology import free_port

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None,
    reason="needs redis-server and its client; on Debian: apt install redis-server, then pip install redis",
)


class Redis:
    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}"
        flags = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder))
        self.process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    import redis as client

    server = Redis(tmp_path, free_port())
    try:
        deadline = time.monotonic() + 30
        with client.Redis.from_url(server.url) as asking:
            while True:
                try:
                    asking.ping()
                    break
                except client.ConnectionError:
                    assert time.monotonic() < deadline
                    assert server.process.poll() is None
                    time.sleep(0.05)
        yield server
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.process.kill()
        server.process.wait(30)


async def test_two_servers_count_one_callers_requests_together(redis: Redis):
    one, other = (Quotas(address=Quota("3/minute;100/day"), storage=redis.url) for _ in range(2))
    for quotas in (one, other, one):
        assert await refusal(quotas, scope()) is None
    for quotas in (one, other):
        refused = await refusal(quotas, scope())
        assert refused is not None
        assert "3 requests per minute" in refused.message
        assert refused.retry_after is not None
        assert 1 <= refused.retry_after <= 60
    assert await refusal(other, scope("1.2.3.5")) is None


async def test_of_many_at_the_same_moment_no_more_get_through_than_may(redis: Redis):
    servers = [Quotas(key=Quota("3/minute"), storage=redis.url) for _ in range(2)]
    ann = scope(caller="ann")
    refused = await asyncio.gather(*(refusal(servers[number % 2], ann) for number in range(20)))
    assert sum(each is None for each in refused) == 3


async def test_a_server_that_is_started_anew_finds_what_was_counted(redis: Redis):
    for number in range(3):
        refused = await refusal(Quotas(address=Quota("2/hour"), storage=redis.url), scope())
        assert (refused is None) == (number < 2)


@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "hanging"])
async def test_without_its_storage_everybody_is_served_and_the_log_says_so_once(
    redis: Redis, loss: signal.Signals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    quotas = Quotas(address=Quota("1/minute"), storage=redis.url)
    assert await refusal(quotas, scope()) is None
    assert await refusal(quotas, scope()) is not None
    redis.process.send_signal(loss)
    with caplog.at_level(logging.WARNING, logger="serve.quotas"):
        async with asyncio.timeout(60):
            assert [await refusal(quotas, scope()) for _ in range(10)] == [None] * 10
    assert len(caplog.records) == 1
    assert "rates are not counted" in caplog.text
    if loss == signal.SIGSTOP:
        redis.process.send_signal(signal.SIGCONT)
        monkeypatch.setattr(quotas_module, "_UNCOUNTED_S", 0.0)
        quotas._uncounted_until = 0.0
        assert await refusal(quotas, scope()) is not None


def test_a_wrong_address_is_told_in_a_sentence():
    for wrong in ("redos://localhost", "redis://localhost:port"):
        with pytest.raises(BadRequest, match="redis://HOST:PORT"):
            Quotas(storage=wrong)
