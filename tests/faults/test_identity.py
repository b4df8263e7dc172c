"""Nobody comes in who does not belong: the control plane asks for its token, the API for keys, all else is refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from llava_core.errors import BadRequest, Unauthorized
from llava_core.types import Request, user
from serve.client import Client
from serve.controller import create_app as controller_app
from serve.credentials import TOKEN, check_exposure, known_token, make_token, token_file
from serve.gate import Gate
from serve.key_ring import KeyRing
from serve.keys import app as keys_command
from serve.protocol import Registration, WorkerStatus
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import read
from tests.serve.serving import serving
from tests.topology import ROOT, Topology

SECRET = "a-token-of-this-test-0123456789"
A = "http://127.0.0.1:1001"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

# What every route of the two servers asks for. A new one must be put here, or the test fails.
CONTROLLER = {
    "GET /health/live": "open",
    "GET /health/ready": "open",
    "GET /metrics": "key",
    "GET /v1/models": "key",
    "GET /v1/models/{name}": "key",
    "POST /v1/chat/completions": "key",
    "POST /v1/inspect/prompt": "key",
    "POST /v1/inspect/attention": "key",
    "POST /register_worker": "control",
    "POST /hold_worker_line": "control",
    "POST /receive_heart_beat": "control",
    "POST /deregister_worker": "control",
    "POST /worker_is_listed": "control",
    "POST /list_workers": "control",
    "POST /worker_is_worth_waiting_for": "control",
    "POST /list_models": "control",
    "POST /get_worker_address": "control",
    "POST /refresh_all_workers": "control",
    "POST /worker_get_status": "control",
    "GET /openapi.json": "control",
    "HEAD /openapi.json": "control",
    "GET /no-such-page": "control",
    "POST /health/live/../../register_worker": "control",
    "PUT /v1/files": "key",
}
WORKER = {
    **{route: "control" if level == "key" else level for route, level in CONTROLLER.items() if "worker" not in route},
    "POST /worker_get_status": "control",
}


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys.json")


@asynccontextmanager
async def guarded(ring: KeyRing) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, WorkerPool]]:
    pool = WorkerPool()
    controller = controller_app(pool, clock=lambda: 0.0, token=SECRET, keys=ring)
    worker = worker_app(FakeEngine(), token=SECRET)
    async with (
        serving(controller) as controller_url,
        serving(worker) as worker_url,
        httpx.AsyncClient(base_url=controller_url, trust_env=False, timeout=10) as at_controller,
        httpx.AsyncClient(base_url=worker_url, trust_env=False, timeout=10) as at_worker,
    ):
        pool.register(Registration(worker_url, WorkerStatus(("m",))), 0)
        yield at_controller, at_worker, pool


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


async def test_every_route_asks_for_what_it_is_listed_with(ring: KeyRing):
    good, expired, revoked = ring.add("good"), ring.add("old", days=1e-9), ring.add("gone")
    ring.revoke("gone")
    callers = {
        "nobody": {},
        "wrong": bearer("wrong"),
        "expired": bearer(expired),
        "revoked": bearer(revoked),
        "basic": {"Authorization": f"Basic {good}"},
        "empty": {"Authorization": "Bearer"},
        "in the address": {"X-Api-Key": good},
        "key": bearer(good),
        "control": bearer(SECRET),
    }
    refused = 0
    async with guarded(ring) as (at_controller, at_worker, _):
        for http, listed in ((at_controller, CONTROLLER), (at_worker, WORKER)):
            for route, level in listed.items():
                method, path = route.split(" ")
                for name, headers in callers.items():
                    if path == "/hold_worker_line" and name == "control":
                        continue
                    answer = await http.request(method, path.replace("{name}", "m"), headers=headers, json={})
                    may = level == "open" or name == "control" or (level == "key" and name == "key")
                    where = f"{route} by {name}: {answer.status_code}"
                    if may:
                        assert answer.status_code not in (401, 403), where
                    else:
                        expected = 403 if name == "key" and http is at_controller else 401
                        assert answer.status_code == expected, where
                        assert answer.headers.get("www-authenticate") == ("Bearer" if expected == 401 else None)
                        refused += 1
    print(f"\n{refused} requests without the right credential, all refused")


def test_no_route_is_left_out_of_the_list(ring: KeyRing):
    for app, listed in (
        (controller_app(WorkerPool(), token=SECRET, keys=ring), CONTROLLER),
        (worker_app(FakeEngine(), token=SECRET), WORKER),
    ):
        for path, operations in app.openapi()["paths"].items():
            for method in operations:
                assert f"{method.upper()} {path}" in listed


ROGUE = [
    {"model_names": ["m"], "speed": 1.0},
    {"model_names": ["m"], "speed": 0},
    {"model_names": ["m"], "speed": float("nan")},
    {"model_names": ["m"], "queue_length": -999},
]


@pytest.mark.parametrize("credential", ["", "wrong", SECRET[:-1], SECRET + "x", SECRET.upper()])
async def test_a_rogue_registration_changes_nothing(ring: KeyRing, credential: str):
    async with guarded(ring) as (http, _, pool):
        before = pool.addresses(0), pool.total(0)
        headers = {"Content-Type": "application/json", **(bearer(credential) if credential else {})}
        for status in ROGUE:
            raw = json.dumps({"worker_name": A, "worker_status": status})
            assert (await http.post("/register_worker", content=raw, headers=headers)).status_code == 401
        for path in ("/deregister_worker", "/receive_heart_beat", "/hold_worker_line"):
            body = {"worker_name": before[0][0], "queue_length": 1000}
            assert (await http.post(path, json=body, headers=headers)).status_code == 401
        assert (pool.addresses(0), pool.total(0)) == before
        for _ in range(100):
            assert pool.pick("m", 0) == before[0][0]


@pytest.mark.parametrize("status", ROGUE[1:])
async def test_hostile_values_are_refused_even_with_the_token(ring: KeyRing, status: dict[str, Any]):
    async with guarded(ring) as (http, _, pool):
        before = pool.addresses(0), pool.total(0)
        raw = json.dumps({"worker_name": A, "worker_status": status})
        headers = {"Content-Type": "application/json", **bearer(SECRET)}
        assert (await http.post("/register_worker", content=raw, headers=headers)).status_code in (400, 422)
        assert (pool.addresses(0), pool.total(0)) == before


async def test_a_key_opens_the_api_through_the_gateway_and_marks_whose_request_it_is(ring: KeyRing):
    keys = {name: ring.add(name) for name in ("ann", "bob")}
    engine, pool = FakeEngine(), WorkerPool()
    async with (
        serving(worker_app(engine, token=SECRET)) as worker,
        serving(controller_app(pool, clock=lambda: 0.0, token=SECRET, keys=ring)) as url,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        pool.register(Registration(worker, WorkerStatus(("m",))), 0)
        for key in keys.values():
            body = {**CHAT, "user": "same"}
            assert (await http.post(f"{url}/v1/chat/completions", json=body, headers=bearer(key))).status_code == 200
        # Nobody gets at another's cached chats by giving the same name.
        assert [request.owner for request in engine.asked] == ["ann/same", "bob/same"]
        # Our own client with a key is no part of the control plane: it goes through the gateway.
        hello = Request("m", (user("hi"),))
        async with Client(url, credential=keys["ann"]) as client:
            assert [card.info.name for card in await client.models()] == ["m"]
            assert (await read(client, hello)).text == answer_to(hello)
        async with Client(url, credential="wrong") as client:
            assert isinstance((await read(client, hello)).error, Unauthorized)
        ring.revoke("ann")
        for name, status in (("ann", 401), ("bob", 200)):
            answer = await http.post(f"{url}/v1/chat/completions", json=CHAT, headers=bearer(keys[name]))
            assert answer.status_code == status


async def test_without_keys_the_api_asks_nobody_and_the_control_plane_still_does(ring: KeyRing):
    async with guarded(ring) as (http, _, _pool):
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await http.post("/list_models", json={})).status_code == 401
        ring.add("first")
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 401


async def test_a_worker_is_closed_to_who_comes_around_the_controller(ring: KeyRing):
    async with guarded(ring) as (_, worker, _pool):
        for path, body in (("/v1/chat/completions", CHAT), ("/worker_get_status", {})):
            assert (await worker.post(path, json=body)).status_code == 401
            assert (await worker.post(path, json=body, headers=bearer(SECRET))).status_code == 200
        assert (await worker.get("/health/live")).status_code == 200


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAVA_SERVE_DATA", str(tmp_path / "data"))
    assert known_token("https://api.openai.com") is None
    assert not token_file().exists()
    ways = [subprocess.Popen([sys.executable, "-c", PRINT], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    tokens = {way.communicate(timeout=30)[0].decode().strip() for way in ways} | {make_token()}
    assert len(tokens) == 1
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600
    assert [path.name for path in token_file().parent.iterdir()] == ["control-token"]
    # Shown to this machine, never to another.
    assert {
        known_token("http://127.0.0.1:1"),
        known_token("http://localhost:1"),
        known_token("http://[::1]:1"),
    } == tokens
    for elsewhere in (
        "https://api.openai.com",
        "http://10.0.0.1:21001",
        "http://127.0.0.1.evil.test",
        "http://localhost.evil",
        "",
    ):
        assert known_token(elsewhere) is None
    token_file().chmod(0o644)
    with pytest.raises(BadRequest, match="others can read"):
        make_token()
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(BadRequest, match="no token"):
        make_token()
    monkeypatch.setenv(TOKEN, SECRET)
    assert (make_token(), known_token("http://worker-host:1")) == (SECRET, SECRET)


def test_threads_that_ask_for_the_first_token_at_once_all_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for round_ in range(20):
        monkeypatch.setenv("LLAVA_SERVE_DATA", str(tmp_path / str(round_)))
        together = threading.Barrier(8)

        def ask(barrier: threading.Barrier = together) -> str:
            barrier.wait(60)
            return make_token()

        with ThreadPoolExecutor(8) as threads:
            tokens = {each.result() for each in [threads.submit(ask) for _ in range(8)]}
        assert tokens == {token_file().read_text().strip()}


PRINT = "from serve.credentials import make_token; print(make_token())"


def test_keys_are_kept_as_hashes_and_the_file_is_its_owners_alone(tmp_path: Path):
    path = tmp_path / "keys.json"

    def keys(*words: str) -> Result:
        return CliRunner().invoke(keys_command, [*words, "--keys", str(path)])

    made = keys("add", "ann")
    secret = made.stdout.strip()
    assert secret.startswith("llava-")
    assert "first key" in made.stderr
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing(path).name_of(secret) == "ann"
    again = keys("add", "ann")
    assert (again.exit_code, "already" in again.stderr) == (2, True)
    listed = keys("list").stdout
    assert "ann" in listed
    assert secret not in listed
    assert keys("revoke", "ann").exit_code == 0
    assert KeyRing(path).name_of(secret) is None
    assert KeyRing(path).asks
    assert keys("revoke", "ann").exit_code == 2


def test_a_key_ring_that_loses_its_file_goes_on_asking(tmp_path: Path):
    now = 0.0
    ring = KeyRing(tmp_path / "keys.json", clock=lambda: now)
    secret = ring.add("ann")
    (tmp_path / "keys.json").unlink()
    now += 10
    assert ring.asks
    assert ring.name_of(secret) == "ann"


def test_a_file_of_keys_that_cannot_be_read_keeps_those_it_had_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    now = 0.0
    ring = KeyRing(tmp_path / "keys.json", clock=lambda: now)
    secret = ring.add("ann")
    (tmp_path / "keys.json").write_text("half a fi")
    for _ in range(3):
        now += 10
        assert ring.name_of(secret) == "ann"
        assert ring.name_of("llava-somebody-else") is None
    assert caplog.text.count("cannot be read") == 1
    with pytest.raises(BadRequest, match="cannot be read"):
        ring.revoke("ann")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_keys_that_root_changes_stay_readable_for_who_serves_with_them(tmp_path: Path):
    path = tmp_path / "keys.json"
    KeyRing(path).add("ann")
    os.chown(path, 65534, 65534)
    KeyRing(path).revoke("ann")
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (65534, 0o600)


@pytest.mark.parametrize(
    ("host", "safe"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.5.5.5", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "", "192.168.1.4", "example.org", "127.0.0.1.evil.test")],
)
def test_only_loopback_may_be_open_to_all(host: str, safe: bool):
    check_exposure(host, guarded=True, insecure=False, remedy="")
    check_exposure(host, guarded=False, insecure=True, remedy="")
    if safe:
        check_exposure(host, guarded=False, insecure=False, remedy="")
    else:
        with pytest.raises(BadRequest, match="--insecure"):
            check_exposure(host, guarded=False, insecure=False, remedy="do this")


def test_a_controller_open_to_the_network_refuses_to_start_without_keys(topology: Topology, data_folder: Path):
    refused = topology.start("controller", "serve.controller", ("--host", "0.0.0.0"))
    assert refused.wait(30) == 2
    assert "--insecure" in refused.log_text()
    assert "python -m serve.keys add" in refused.log_text()
    assert "Traceback" not in refused.log_text()


def test_a_page_with_a_public_link_refuses_to_start_where_it_asks_nobody(topology: Topology, data_folder: Path):
    refused = topology.start("page", "serve.gradio_web_server", ("--share", "--history", "off"))
    assert refused.wait(30) == 2
    assert "whoever reaches the public link could use this server" in refused.log_text()
    assert "Traceback" not in refused.log_text()


def test_the_page_lets_in_a_name_with_its_own_key_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from serve.gradio_web_server import make_doorman

    monkeypatch.setenv("LLAVA_SERVE_DATA", str(tmp_path))
    assert make_doorman("127.0.0.1", login=False, insecure=False) is None
    for host, login in (("0.0.0.0", False), ("127.0.0.1", True)):
        with pytest.raises(SystemExit):
            make_doorman(host, login=login, insecure=False)
    assert "--insecure" in capsys.readouterr().err
    ring = KeyRing(tmp_path / "keys.json")
    ann, bob = ring.add("ann"), ring.add("bob")
    opens = make_doorman("0.0.0.0", login=True, insecure=False)
    assert opens is not None
    assert opens("ann", ann)
    assert not any((opens("ann", bob), opens("bob", ann), opens("", ann), opens("ann", ""), opens("eve", ann)))


FOREIGN = [
    {"Origin": "https://evil.test"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9999"},
    {"Origin": "http://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_page_of_another_origin_can_send_nothing_and_read_nothing(ring: KeyRing, headers: dict[str, str]):
    async with guarded(ring) as (controller, worker, _):
        for http in (controller, worker):
            for path, body in (("/v1/chat/completions", CHAT), ("/register_worker", {}), ("/worker_get_status", {})):
                answer = await http.post(path, json=body, headers={**headers, **bearer(SECRET)})
                assert answer.status_code == 403
            for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/chat/completions")):
                answer = await http.request(method, path, headers=headers)
                assert not [name for name in answer.headers if name.startswith("access-control-")]
        own = {"Origin": str(controller.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        assert (await controller.post("/v1/chat/completions", json=CHAT, headers=own)).status_code == 200


async def test_a_name_that_was_made_to_lead_here_opens_nothing(ring: KeyRing):
    app = controller_app(WorkerPool(), clock=lambda: 0.0, token=SECRET, keys=ring, local=True)
    async with serving(app) as url, httpx.AsyncClient(trust_env=False) as http:
        for host in (
            "evil.test",
            "evil.test:80",
            "127.0.0.1.evil.test",
            "[::ffff:6.6.6.6]",
            "",
            "[",
            "localhost.evil.test",
        ):
            assert (await http.get(f"{url}/v1/models", headers={"Host": host})).status_code in (400, 403), host
        for host in ("localhost", "localhost:21001", "127.0.0.1:1", "[::1]:21001"):
            assert (await http.get(f"{url}/v1/models", headers={"Host": host})).status_code == 200, host
        # Whoever shows a key knows where it is going.
        key = bearer(ring.add("ann"))
        assert (await http.get(f"{url}/v1/models", headers={"Host": "llava.example", **key})).status_code == 200


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "OPTIONS", "get"]))
def test_no_odd_path_gets_past_the_gate(path: str, method: str):
    gate = Gate(SECRET)
    level = gate.level("/" + path)
    if level != "control":
        assert path in ("health/live", "health/ready", "metrics") or path.startswith("v1/")
    else:
        with pytest.raises(Unauthorized):
            gate.admit({"type": "http", "method": method, "path": "/" + path, "headers": []})
