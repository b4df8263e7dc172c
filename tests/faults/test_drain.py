"""A worker of its own process is told to stop while it answers: what it began it finishes, and then it has gone."""

from __future__ import annotations

import asyncio
import signal
import time

import httpx

from llava_core.config import ClientTimings
from tests.topology import Topology, token_header

STREAMS = 10
HALF = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Authorization: %s\r\nContent-Length: 5000\r\n\r\n{"
)


async def test_a_worker_that_is_told_to_stop_finishes_ten_answers_and_exits_with_0(topology: Topology):
    topology.controller()
    worker = await asyncio.to_thread(topology.worker, "echo", delay_s=0.05, extra=("--max-running", "16"))
    words = " ".join(f"word{number}" for number in range(25))
    body = {"model": "echo", "messages": [{"role": "user", "content": words}], "stream": True}
    begun = asyncio.Semaphore(0)

    async def read(http: httpx.AsyncClient) -> str:
        said = ""
        async with http.stream("POST", f"{topology.api_url}/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            async for piece in answer.aiter_text():
                if not said:
                    begun.release()
                said += piece
        return said

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        idle = [await asyncio.open_connection("127.0.0.1", worker.port) for _ in range(5)]
        half = await asyncio.open_connection("127.0.0.1", worker.port)
        half[1].write(HALF % token_header()["Authorization"].encode())
        # A connection that was used and is kept for the next request.
        await http.get(f"{worker.url}/health/live")
        reading = [asyncio.create_task(read(http)) for _ in range(STREAMS)]
        for _ in range(STREAMS):
            await asyncio.wait_for(begun.acquire(), 60)
        told = time.monotonic()
        worker.signal(signal.SIGTERM)
        refusal = await asyncio.wait_for(half[0].readline(), 30)
        answers = await asyncio.gather(*reading)
        code = await asyncio.to_thread(worker.wait)
        took = time.monotonic() - told
        # From then on there is nobody for the model, which is said so at once.
        after = await http.post(f"{topology.api_url}/v1/chat/completions", json=body)
        for _, writer in (*idle, half):
            writer.close()
    whole = sum("word24" in said.replace(" ", "") and "[DONE]" in said for said in answers)
    print(f"\n{whole} of {STREAMS} answers ended whole; exit code {code} {took:.1f} s after {signal.SIGTERM.name}")
    assert whole == STREAMS
    assert code == 0
    assert b" 503 " in refusal
    assert took < 30
    assert (after.status_code, after.json()["error"]["code"]) == (503, "NoWorker")


async def test_the_only_worker_is_told_to_stop_before_its_first_word_and_still_answers(topology: Topology):
    topology.controller()
    worker = await asyncio.to_thread(topology.worker, "echo", first_s=3 * ClientTimings.check_s)
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}

    async def is_asked(http: httpx.AsyncClient) -> bool:
        status = await http.post(f"{worker.url}/worker_get_status", headers=token_header())
        return status.json()["queue_length"] == 1

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        asking = asyncio.create_task(http.post(f"{topology.api_url}/v1/chat/completions", json=body))
        for _ in range(100):
            if await is_asked(http):
                break
            await asyncio.sleep(0.02)
        assert not asking.done()
        worker.signal(signal.SIGTERM)
        answer = await asking
        code = await asyncio.to_thread(worker.wait)
    assert answer.status_code == 200, answer.text
    assert "You said: hi" in answer.json()["choices"][0]["message"]["content"]
    assert code == 0
