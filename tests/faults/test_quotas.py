"""Nobody takes more than a share: rates and requests at once, by key and by address, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Scope
from typer.testing import CliRunner

from llava_core.chat_protocol import MAX_USER_CHARS
from llava_core.errors import BadRequest, MissingDependency, Overloaded
from serve import quotas as quotas_module
from serve.gate import CONTROL
from serve.gateway import is_chat
from serve.key_ring import MAX_NAME_CHARS, KeyRing
from serve.keys import app as keys_command
from serve.protocol import Registration, WorkerStatus
from serve.quota import Quota
from serve.quotas import Quotas, address_of
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.fake_engine import FakeEngine
from tests.faults.rig import until
from tests.serve.serving import serving

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


class Clock:
    """The calendar's and the other, which nobody sets back."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.since_start = 500.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.since_start

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.since_start += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(time=clock.time, monotonic=clock.monotonic)
    for module in ("limits.aio.storage.memory.time", "limits.aio.strategies.time"):
        monkeypatch.setattr(module, fake)
    monkeypatch.setattr(quotas_module, "time", fake)
    return clock


def scope(address: str = "1.2.3.4", *, caller: str = "", forwarded: str | None = None) -> Scope:
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    return {"type": "http", "client": (address, 1), "headers": headers, "caller": caller}


async def refusal(quotas: Quotas, scope: Scope) -> Overloaded | None:
    try:
        async with quotas.place(scope):
            return None
    except Overloaded as error:
        return error


async def test_a_rate_lets_so_many_through_and_says_when_the_next_may_come(clock: Clock):
    quotas = Quotas(address=Quota("3/minute;5/hour"))
    for _ in range(3):
        assert await refusal(quotas, scope()) is None
        clock.wait(10)
    refused = await refusal(quotas, scope())
    assert refused is not None
    assert refused.retry_after == 30
    assert "3 requests per minute; the next one in 30 s" in refused.message
    # Others are not touched by it, nor are our own processes.
    assert await refusal(quotas, scope("1.2.3.5")) is None
    assert await refusal(quotas, scope(caller=CONTROL)) is None
    clock.wait(31)
    assert await refusal(quotas, scope()) is None
    clock.wait(60)
    assert await refusal(quotas, scope()) is None
    refused = await refusal(quotas, scope())
    assert refused is not None
    assert "per hour" in refused.message
    # What was refused does not count.
    clock.wait(3600)
    assert await refusal(quotas, scope()) is None


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_set_an_hour_off_keeps_nobody_out(clock: Clock, hours: int):
    quotas = Quotas(address=Quota("2/minute"))
    assert await refusal(quotas, scope()) is None
    clock.now += hours * 3600
    assert await refusal(quotas, scope()) is None
    assert await refusal(quotas, scope()) is None if hours < 0 else True
    clock.wait(61)
    assert await refusal(quotas, scope()) is None


async def test_places_at_once_are_given_back_however_an_answer_ends():
    quotas = Quotas(key=Quota(at_once=2), address=Quota(at_once=1))
    async with quotas.place(scope(caller="ann")), quotas.place(scope(caller="ann")):
        refused = await refusal(quotas, scope(caller="ann"))
        assert refused is not None
        assert "'ann' may have 2 requests answered at once" in refused.message
        assert await refusal(quotas, scope(caller="bob")) is None
    with pytest.raises(ZeroDivisionError):
        async with quotas.place(scope()):
            raise ZeroDivisionError
    assert await refusal(quotas, scope()) is None

    async def hold() -> None:
        async with quotas.place(scope()):
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0)
    assert await refusal(quotas, scope()) is not None
    holding.cancel()
    await asyncio.wait([holding])
    assert await refusal(quotas, scope()) is None


def test_an_address_is_the_connections_unless_a_proxy_is_trusted_to_tell():
    spoofed = "6.6.6.6, 7.7.7.7"
    assert address_of(scope("10.0.0.1", forwarded=spoofed), 0) == "10.0.0.1"
    assert address_of(scope("10.0.0.1", forwarded=spoofed), 1) == "7.7.7.7"
    assert address_of(scope("10.0.0.1", forwarded=spoofed), 2) == "6.6.6.6"
    # Who comes around the proxies has too few entries.
    assert address_of(scope("10.0.0.1", forwarded="6.6.6.6"), 2) == "10.0.0.1"
    assert address_of(scope("10.0.0.1"), 1) == "10.0.0.1"
    assert address_of(scope("2001:db8:1:2:3::1"), 0) == address_of(scope("2001:db8:1:2:ffff::9"), 0)
    assert address_of(scope("::ffff:1.2.3.4"), 0) == "1.2.3.4"
    assert len(address_of(scope("x" * 1000), 0)) <= 64


@pytest.mark.parametrize("rate", ["fast", "0/minute", "-1/minute", "", "60", "60/fortnight"])
def test_a_rate_that_is_none_is_refused_where_it_is_written(rate: str):
    with pytest.raises(BadRequest, match="60/minute"):
        Quota(rate)


def test_a_storage_that_is_none_is_refused_and_a_missing_package_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadRequest, match="redis://"):
        Quotas(storage="nonsense://x")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingDependency, match="pip install redis"):
        Quotas(storage="redis://localhost:6379")


@asynccontextmanager
async def guarded(quotas: Quotas, ring: KeyRing | None = None) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    from serve.controller import create_app

    engine, pool = FakeEngine(), WorkerPool()
    app = create_app(pool, clock=lambda: 0.0, keys=ring, quotas=quotas)
    async with (
        serving(worker_app(engine)) as worker,
        serving(app) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http,
    ):
        pool.register(Registration(worker, WorkerStatus(("m",))), 0)
        yield http, engine


async def test_the_gateway_answers_429_with_the_sentence_and_the_time_to_come_back(clock: Clock):
    async with guarded(Quotas(address=Quota("2/minute"), applies=is_chat)) as (http, engine):
        chat = "/v1/chat/completions"
        assert [(await http.post(chat, json=BODY)).status_code for _ in range(2)] == [200, 200]
        refused = await http.post(chat, json=BODY, headers={"X-Forwarded-For": "9.9.9.9"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) == 60
        assert refused.json()["error"]["code"] == "Overloaded"
        assert "2 requests per minute" in refused.json()["error"]["message"]
        assert len(engine.asked) == 2
        # Looking is free.
        assert (await http.get("/v1/models")).status_code == 200


async def test_callers_without_keys_are_told_apart_by_where_they_are_and_nobody_can_claim_to_be_another():
    async with guarded(Quotas(proxies=1)) as (http, engine):

        async def ask(user: str, forwarded: str) -> str:
            body, headers = {**BODY, "user": user}, {"X-Forwarded-For": forwarded}
            assert (await http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
            return engine.asked[-1].owner

        ann = await ask("me", "2001:db8:1:2:3::1")
        assert ann == await ask("me", "2001:db8:1:2:ffff::9")
        others = {await ask("you", "2001:db8:1:2:3::1"), await ask("me", "2001:db8:1:3::1")}
        others |= {await ask("me", "2001:db8:1:2::, 5.5.5.5"), await ask("2001:db8:1:2::/64/me", "5.5.5.5")}
        assert len(others | {ann}) == 5


async def test_the_longest_key_and_the_longest_user_are_still_a_caller(tmp_path: Path):
    ring = KeyRing(tmp_path / "keys.json")
    secret = ring.add("n" * MAX_NAME_CHARS)
    async with guarded(Quotas(), ring) as (http, engine):
        for user in ("u" * MAX_USER_CHARS, "v" * MAX_USER_CHARS):
            answer = await http.post(
                "/v1/chat/completions", json={**BODY, "user": user}, headers={"Authorization": f"Bearer {secret}"}
            )
            assert answer.status_code == 200
        assert engine.asked[0].owner != engine.asked[1].owner


async def test_on_the_page_an_address_has_so_many_answers_and_a_sentence_says_so(tmp_path: Path):
    pytest.importorskip("gradio")
    from serve.gradio_web_server import make_context
    from serve.tabs.parts import place

    headers = {"X-Forwarded-For": "6.6.6.6, 5.5.5.5"}
    caller: Any = SimpleNamespace(client=SimpleNamespace(host="1.2.3.4"), headers=headers, username=None)

    class Nobody:
        async def models(self):
            return ()

    context = make_context(
        Nobody(),  # pyright: ignore[reportArgumentType]
        uploads=tmp_path,
        quotas=Quotas(key=Quota(at_once=1), address=Quota(at_once=1), proxies=1),
    )
    people: list[Any] = [SimpleNamespace(**{**vars(caller), "username": name}) for name in ("ann", "bob")]
    ann, bob = people
    async with place(context, caller):
        with pytest.raises(Overloaded, match="your address may have 1 request"):
            async with place(context, caller):
                pass
        # Who logged in is counted by name, and so are people who share an address.
        async with place(context, ann), place(context, bob):
            with pytest.raises(Overloaded, match="'ann' may have 1 request"):
                async with place(context, ann):
                    pass
    async with place(context, caller):
        pass


async def test_a_stream_holds_its_place_until_it_ends_or_is_left():
    async with guarded(Quotas(address=Quota(at_once=1))) as (http, engine):
        engine.hold.clear()
        leaving = asyncio.create_task(http.post("/v1/chat/completions", json={**BODY, "stream": True}))
        await until(lambda: engine.running == 1)
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 429
        leaving.cancel()
        await until(lambda: engine.running == 0)
        engine.hold.set()
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200


async def test_a_key_that_is_called_like_one_of_ours_is_a_key_like_others(tmp_path: Path):
    ring = KeyRing(tmp_path / "keys.json")
    secret = ring.add("control")
    async with guarded(Quotas(key=Quota("1/hour")), ring) as (http, engine):
        headers = {"Authorization": f"Bearer {secret}"}
        body = {**BODY, "user": "somebody else's"}
        answers = [await http.post("/v1/chat/completions", json=body, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert engine.asked[-1].owner.endswith("control/somebody else's")


async def test_several_answers_to_one_question_take_as_many_places():
    async with guarded(Quotas(address=Quota(at_once=4))) as (http, engine):

        async def ask(n: int) -> httpx.Response:
            return await http.post("/v1/chat/completions", json={**BODY, "n": n})

        engine.hold.clear()
        three = asyncio.create_task(ask(3))
        await until(lambda: engine.running == 1)
        refused = await ask(2)
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        engine.hold.set()
        assert (await three).status_code == 200
        # All places were given back; more than there ever are is no question of time.
        assert (await ask(4)).status_code == 200
        never = await ask(5)
        assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
        assert "may have 4" in never.json()["error"]["message"]
        assert len(engine.asked) == 3 + 4


async def test_several_answers_to_one_question_count_as_many_in_a_rate(clock: Clock):
    async with guarded(Quotas(address=Quota("6/minute"))) as (http, _):

        async def ask(n: int) -> int:
            return (await http.post("/v1/chat/completions", json={**BODY, "n": n})).status_code

        # A request that is refused for its further answers was one all the same.
        assert [await ask(4), await ask(2), await ask(1)] == [200, 200, 429]
        clock.wait(61)
        assert [await ask(8), await ask(6)] == [400, 429]


async def test_who_waits_as_told_gets_several_answers(clock: Clock):
    async with guarded(Quotas(address=Quota("5/minute"))) as (http, _):

        async def ask(n: int) -> httpx.Response:
            return await http.post("/v1/chat/completions", json={**BODY, "n": n})

        assert (await ask(1)).status_code == 200
        clock.wait(30)
        refused = await ask(5)
        assert refused.status_code == 429
        clock.wait(int(refused.headers["retry-after"]))
        assert (await ask(5)).status_code == 200


async def test_a_keys_own_quota_goes_before_what_all_keys_have_and_changes_without_a_restart(
    tmp_path: Path, clock: Clock
):
    path, now = tmp_path / "keys.json", 0.0
    ring = KeyRing(path, clock=lambda: now)
    few, plain = ring.add("few", quota=Quota("1/minute")), ring.add("plain")
    async with guarded(Quotas(key=Quota("2/minute"), of_key=ring.quota_of), ring) as (http, _):

        async def ask(secret: str) -> list[int]:
            headers = {"Authorization": f"Bearer {secret}"}
            answers = [await http.post("/v1/chat/completions", json=BODY, headers=headers) for _ in range(3)]
            return [answer.status_code for answer in answers]

        assert await ask(few) == [200, 429, 429]
        assert await ask(plain) == [200, 200, 429]
        said = CliRunner().invoke(keys_command, ["limit", "few", "--rate", "10/minute", "--keys", str(path)])
        assert said.exit_code == 0
        now += 10
        assert await ask(few) == [200, 200, 200]
    listed = CliRunner().invoke(keys_command, ["list", "--keys", str(path)]).stdout
    assert "10/minute" in listed
    wrong = CliRunner().invoke(keys_command, ["limit", "few", "--rate", "often", "--keys", str(path)])
    assert (wrong.exit_code, "60/minute" in wrong.stderr) == (2, True)
