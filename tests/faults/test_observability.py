"""What happened can be told afterwards: counts add up, one id leads through all logs, and no log tells of a chat."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llava_core.config import BreakerLimits
from llava_core.errors import EngineFailure
from llava_core.types import Request, user
from serve.log_format import FORMAT, PROMPTS, JsonLines, PlainLines, formatter
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import Rig, rig, until

SECRET = "my-secret-question"
REQUESTS = 1000
VLLM_NAMES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:request_success",
    "vllm:prefix_cache_hits",
}


def body(**changes: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, **changes}


async def numbers(http: httpx.AsyncClient, url: str) -> dict[str, dict[tuple[str, ...], float]]:
    text = (await http.get(f"{url}/metrics")).text
    return {
        family.name: {
            (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(text)
    }


async def many_outcomes(there: Rig, http: httpx.AsyncClient, engine: FakeEngine) -> dict[str, int]:
    """Requests that end in every way there is, mixed; how many of each."""
    chat = f"{there.url}/v1/chat/completions"
    counts: dict[str, int] = dict.fromkeys(("ok", "rejected", "cancelled", "error"), 0)
    kinds = (["ok"] * 8 + ["malformed"] * 3 + ["unknown"] * 3 + ["left"] * 2 + ["failed"] * 4) * (REQUESTS // 20)
    random.Random(3).shuffle(kinds)
    doors = asyncio.Semaphore(8)

    async def one(kind: str, number: int) -> None:
        async with doors:
            if kind == "ok":
                assert (await http.post(chat, json=body(stream=number % 2 == 0))).status_code == 200
                counts["ok"] += 1
            elif kind == "malformed":
                answer = await http.post(chat, content=random.Random(number).randbytes(30), headers=JSON)
                assert answer.status_code == 400
                counts["rejected"] += 1
            elif kind == "unknown":
                assert (await http.post(chat, json=body(model=f"other-{number}"))).status_code == 404
                counts["rejected"] += 1
            elif kind == "left":
                async with http.stream("POST", chat, json=body(stream=True, max_tokens=60, user="slow")) as answer:
                    async for _ in answer.aiter_bytes():
                        break
                counts["cancelled"] += 1
            else:
                assert (await http.post(chat, json=body(user="fail"))).status_code == 500
                counts["error"] += 1

    await asyncio.gather(*(one(kind, number) for number, kind in enumerate(kinds)))
    return counts


class Moody(FakeEngine):
    """Fails, or takes its time, as the caller's name says."""

    async def _answer(self, request):
        if request.owner.endswith("/fail"):
            raise EngineFailure("it broke")
        async for chunk in super()._answer(request):
            yield chunk
            if request.owner.endswith("/slow"):
                await asyncio.sleep(0.05)


JSON = {"Content-Type": "application/json"}


async def test_what_came_in_is_what_was_answered_refused_failed_and_left():
    engine = Moody()
    # Failures in a row open a circuit, and what it refuses would be counted as that.
    never = BreakerLimits(failures=10_000)
    async with rig([engine], breakers=never) as there, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        counts = await many_outcomes(there, http, engine)
        await until(lambda: engine.running == 0)
        await asyncio.sleep(0.1)
        found = await numbers(http, there.url)
    received = found["llava:requests_received"]["llava:requests_received_total",]
    ended = dict.fromkeys(counts, 0.0)
    for (_, _, outcome), count in found["llava:requests_ended"].items():
        ended[outcome.removeprefix("outcome=")] += count
    print(f"\n{received:.0f} requests received: {ended}")
    assert received == sum(counts.values()) == REQUESTS
    assert ended == counts
    assert found.keys() >= VLLM_NAMES
    # What strangers ask for makes no series.
    assert not any("other-" in label for family in found.values() for sample in family for label in sample)
    success = found["vllm:request_success"]
    assert success["vllm:request_success_total", "finished_reason=length", "model_name=m"] == counts["ok"]
    first = found["vllm:time_to_first_token_seconds"]
    assert first["vllm:time_to_first_token_seconds_count", "model_name=m"] == counts["ok"] + counts["cancelled"]
    assert found["vllm:generation_tokens"]["vllm:generation_tokens_total", "model_name=m"] == 5 * counts["ok"]
    assert found["vllm:num_requests_running"]["vllm:num_requests_running", "model_name=m"] == 0


async def test_one_id_leads_from_the_answer_through_the_logs_of_every_hop(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with rig([FakeEngine()]) as there, httpx.AsyncClient(trust_env=False) as http:
        for stream in (True, False):
            for given in (None, "trace-0123", "evil\x1b[31m", "x" * 500, "a b"):
                caplog.clear()
                headers = {} if given is None else {"X-Request-Id": given.encode().decode("latin-1")}
                answer = await http.post(f"{there.url}/v1/chat/completions", json=body(stream=stream), headers=headers)
                if given is not None and "\x1b" in given:
                    # Not even a header, so it came to nobody.
                    assert answer.status_code == 400
                    continue
                its_id = answer.headers["x-request-id"]
                assert (its_id == given) == (given == "trace-0123")
                assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", its_id)
                ids = re.findall(r'"id": ?"([^"]+)"', answer.text)
                assert set(ids) == {its_id}
                # A line of the worker and one of the controller.
                await until(lambda its_id=its_id: caplog.text.count(f"chat {its_id} ") == 2)
                assert SECRET not in caplog.text


HOSTILE = [
    "two\r\nlines",
    "\x1b[2Jcleared",
    "line\u2028separated\u2029",
    "half a pair \ud800",
    "nul\x00 bell\x07 next\x85",
    '"quotes" and {braces} %s %d',
    "long " + "x" * 1_000_000,
]


@pytest.mark.parametrize("lines", [JsonLines(), PlainLines("%(levelname)s %(message)s")], ids=["json", "plain"])
def test_no_text_however_hostile_makes_a_log_line_into_another(lines: logging.Formatter):
    written = [lines.format(logging.LogRecord("x", logging.INFO, "f", 1, text, None, None)) for text in HOSTILE]
    log = "\n".join(written)
    log.encode("ascii" if isinstance(lines, JsonLines) else "utf-8")
    assert len(log.splitlines()) == len(HOSTILE)
    assert all(len(line) < 120_000 for line in written)
    assert "\x1b" not in log
    if isinstance(lines, JsonLines):
        for line, text in zip(written, HOSTILE, strict=True):
            assert json.loads(line)["message"] == text[: len(json.loads(line)["message"])]


def test_a_line_about_a_chat_has_its_figures_as_fields(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FORMAT, "json")
    record = logging.LogRecord("serve", logging.INFO, "f", 1, "chat %s", ("id-1",), None)
    record.fields = {"request_id": "id-1", "tokens": 5}
    line = json.loads(formatter().format(record))
    assert (line["message"], line["request_id"], line["tokens"], line["level"]) == ("chat id-1", "id-1", 5, "INFO")
    try:
        raise ValueError("broken\nin two")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: broken" in json.loads(formatter().format(record))["traceback"]
    monkeypatch.delenv(FORMAT)
    assert isinstance(formatter(), PlainLines)


@pytest.mark.parametrize("wanted", [None, "0", "1"])
async def test_the_words_of_a_chat_are_in_the_log_only_where_the_operator_asks_for_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: str | None
):
    if wanted is not None:
        monkeypatch.setenv(PROMPTS, wanted)
    caplog.set_level(logging.DEBUG)
    secret = "a tulip\nERROR forged \u2028 line"
    async with rig([FakeEngine()]) as there, httpx.AsyncClient(trust_env=False) as http:
        sent = {**body(), "messages": [{"role": "user", "content": secret}], "stream": True}
        assert (await http.post(f"{there.url}/v1/chat/completions", json=sent)).status_code == 200
        await until(lambda: sum("outcome=" in record.getMessage() for record in caplog.records) == 2)
    answer = answer_to(Request("m", (user(secret),)))
    for lines in (JsonLines(), PlainLines("%(message)s")):
        written = [lines.format(record) for record in caplog.records]
        told = [line for line in written if "tulip" in line and answer.split()[0] in line]
        assert len(told) == (2 if wanted == "1" else 0)
        assert wanted == "1" or not any("tulip" in line for line in written)
        assert all(len(line.splitlines()) == 1 for line in written)


async def test_metrics_tell_of_retries_and_answers_that_went_on_elsewhere():
    async with rig([FakeEngine(), FakeEngine()]) as there, httpx.AsyncClient(trust_env=False) as http:
        there.proxies[0].cut_after(1500)
        for _ in range(2):
            answer = await http.post(f"{there.url}/v1/chat/completions", json=body(max_tokens=40))
            assert answer.status_code == 200
        found = await numbers(http, there.url)
    assert found["llava:events"]["llava:events_total", "event=continuation"] == 1
    assert found["llava:workers"]["llava:workers", "model_name=m"] == 2
