"""The page's own server against who is up to no good: other origins, other people's files, odd addresses and bodies."""

from __future__ import annotations

import io
import os
import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import psutil
import pytest
from gradio.routes import App
from PIL import Image
from starlette.responses import PlainTextResponse

from llava_core.errors import Forbidden
from serve.credentials import FOLDER
from serve.key_ring import KeyRing, keys_file
from serve.page.doorman import Doorman
from serve.page.gate import PageFrame, PageGate
from serve.page.uploads import COOKIE, Uploads
from tests.faults.lateness import Lateness
from tests.topology import Server, Topology

UPLOADS = Path("/srv/uploads")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with Topology(tmp_path_factory.mktemp("servers")) as made, pytest.MonkeyPatch.context() as patch:
        # What Gradio would take for a wish to be found by everybody, or to hand out the whole disk.
        patch.setenv("GRADIO_SHARE", "1")
        patch.setenv("GRADIO_ALLOWED_PATHS", "/etc")
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        # Keys of this file's own: those in the common folder go with the test that made them.
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("data")))
        made.controller()
        KEYS["page-guest"] = KeyRing(keys_file()).add("page-guest")
        made.worker("echo", delay_s=0.002, wait=False)
        for login in ((), ("--login",)):
            flags = ("--controller", made.controller_url, "--history", "off", *login)
            made.start("page", "serve.gradio_web_server", flags)
        for each in made.servers[1:]:
            each.until_ready("/health/live", 120)
        yield made


KEYS: dict[str, str] = {}


@pytest.fixture(scope="module")
def page(servers: Topology) -> Server:
    return servers.servers[2]


@pytest.fixture
def http(page: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.url, trust_env=False, timeout=60) as client:
        yield client


def picture(marker: bytes = b"") -> bytes:
    made = io.BytesIO()
    exif = Image.Exif()
    if marker:
        exif[0x010E] = marker.decode()
        exif[0x0112] = 6
    Image.new("RGB", (40, 30), (200, 30, 60)).save(made, "JPEG", exif=exif)
    return made.getvalue()


def upload(http: httpx.Client, name: str, data: bytes, **headers: str) -> httpx.Response:
    return http.post("/gradio_api/upload", files={"files": (name, data)}, headers=headers)


# Addresses ---------------------------------------------------------------------------------------------------------

# Those of Gradio's routes that our page lets through, and whether Gradio asks there who is logged in.
OPEN = {
    "/", "/login", "/logout", "/static/{path:path}", "/assets/{path:path}", "/svelte/{path:path}", "/favicon.ico",
    "/theme.css", "/robots.txt", "/pwa_icon", "/pwa_icon/{size}", "/manifest.json", "/gradio_api/user",
    "/gradio_api/login_check", "/gradio_api/token", "/gradio_api/app_id", "/gradio_api/theme.css",
    "/gradio_api/startup-events", "/gradio_api/heartbeat/{session_hash}", "/gradio_api/cancel", "/gradio_api/reset",
}  # fmt: skip
ASKED = {
    "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/component_server", "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/file={path_or_url:path}", "/gradio_api/run/{api_name}", "/gradio_api/api/{api_name}",
    "/gradio_api/call/{api_name}", "/gradio_api/call/v2/{api_name}", "/gradio_api/call/{api_name}/{event_id}",
    "/gradio_api/call/v2/{api_name}/{event_id}",
}  # fmt: skip


def lets_through(path: str, method: str = "GET", **headers: str) -> bool:
    raw = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": raw}
    try:
        PageGate(local=True, uploads=UPLOADS).admit(scope)
    except Forbidden:
        return False
    return True


def test_of_gradios_routes_only_those_that_the_page_needs_are_there():
    with gr.Blocks() as blocks:
        pass
    routes = {str(getattr(route, "path", "")).rstrip("/") or "/" for route in App.create_app(blocks).routes}
    routes |= {f"/gradio_api{path}" for path in ("/proxy={url_path:path}", "/vibe-edit", "/process_recording", "/runs")}
    through = {
        route
        for route in routes
        if lets_through(re.sub(r"\{(\w+)(:path)?\}", "x", route).replace("file=x", f"file={UPLOADS}/a/b.png"))
    }
    assert sorted(through - OPEN - ASKED) == []
    for path in (
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/monitoring",
        "/gradio_api/stream/x",
        "/dev/reload",
        "/docs",
    ):
        assert not lets_through(path)


@pytest.mark.parametrize(
    "asked",
    [
        *("/etc/passwd", "//etc/passwd", f"{UPLOADS}/../../etc/passwd", f"{UPLOADS}x/a.png", "http://evil.test/"),
        *("a.png", f"{UPLOADS}/a\0b", "", "file:///etc/passwd", "../../../../etc/passwd", "https:/evil.test"),
    ],
)
def test_a_file_outside_the_uploads_has_no_address(asked: str):
    assert not lets_through(f"/gradio_api/file={asked}")
    assert lets_through(f"/gradio_api/file={UPLOADS}/0123/a.png")


def test_files_of_the_machine_are_not_handed_out_however_they_are_asked_for(http: httpx.Client, servers: Topology):
    secret = servers.folder / "secret.txt"
    secret.write_text("nobody may read this")
    for path in (
        f"/gradio_api/file={secret}",
        f"/gradio_api/file%3D{secret}",
        f"/gradio_api/file/{secret}",
        f"/file={secret}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=..%2f..%2f..%2fetc%2fpasswd",
        "/static/..%2f..%2f..%2fetc/passwd",
        "/assets/%2e%2e/%2e%2e/requirements.txt",
        "/examples/..%2fREADME.md",
        "/examples/%2e%2e/serve/gate.py",
        "/shared/..%2f..%2fetc%2fpasswd",
        "/custom_component/x/client/../../etc/passwd",
    ):
        answer = http.get(path)
        assert answer.status_code in (400, 403, 404), path
        assert "root:" not in answer.text
        assert "nobody may" not in answer.text


def test_no_address_forwards_or_redirects_elsewhere(http: httpx.Client):
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.3)
        target = f"http://127.0.0.1:{canary.getsockname()[1]}/"
        for path in (
            f"/gradio_api/proxy={target}",
            f"/gradio_api/file={target}",
            f"//{target.removeprefix('http://')}",
            f"/login?redirect={target}",
            f"/?__theme={target}",
            f"/gradio_api/vibe-code/?url={target}",
        ):
            answer = http.get(path)
            assert not answer.headers.get("location", "").startswith(("http://127.0.0.1:", "//")), path
        data = {"data": [{"path": target, "url": target, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0}
        for path in ("/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/run/ask"):
            http.post(path, json={**data, "session_hash": "x"})
        picture_by_address = ["echo", "hi", [target], 0.2, 0.7, 20]
        started = http.post("/gradio_api/call/ask", json={"data": picture_by_address}).json()
        with http.stream("GET", f"/gradio_api/call/ask/{started['event_id']}") as answer:
            answer.read()
        with pytest.raises(TimeoutError):
            canary.accept()


# Other origins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": origin}
        for origin in ("https://evil.test", "null", "http://localhost:9999", "http://[", "http://127.0.0.1")
    ]
    + [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
    ids=str,
)
def test_another_origin_sends_the_page_nothing_and_reads_nothing(http: httpx.Client, headers: dict[str, str]):
    assert upload(http, "a.jpg", picture(), **headers).status_code == 403
    for path in ("/gradio_api/queue/join", "/gradio_api/component_server", "/login", "/gradio_api/cancel", "/live/act"):
        assert http.post(path, json={}, headers=headers).status_code == 403
    for method, path in (("GET", "/config"), ("OPTIONS", "/gradio_api/upload"), ("GET", "/")):
        preflight = {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
        answer = http.request(method, path, headers={**headers, **preflight})
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_name_made_to_lead_to_the_page_opens_nothing(http: httpx.Client):
    for host in ("evil.test", "127.0.0.1.evil.test:80", "localhost.evil.test"):
        assert http.get("/config", headers={"Host": host}).status_code == 403
    assert http.get("/config", headers={"Host": "localhost:7860"}).status_code == 200


def test_every_answer_of_the_page_says_how_it_may_be_used(http: httpx.Client):
    for path in ("/", "/config", "/shared/nothing", "/examples/cat.jpg", "/no-such-page", "/theme.css"):
        answer = http.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["x-request-id"]
        if answer.status_code != 403:
            assert "object-src 'none'" in answer.headers["content-security-policy"], path
            assert answer.headers["referrer-policy"] == "no-referrer"


def in_log(server: Server, line: str) -> re.Match[str]:
    """What of a line is in its log, once it is there."""
    pattern = re.compile(rf"^\S+ \S+ INFO {line}", re.MULTILINE)
    for _ in range(200):
        if found := pattern.search(server.log_text()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no line {line} in the log of {server.name}:\n{server.log_text()}")


def test_one_id_leads_from_the_page_through_controller_and_worker(http: httpx.Client, servers: Topology):
    controller, worker, page, _ = servers.servers
    asked = {"owner": "o" * 32, "place": "chat", "text": "my-secret-question"}
    # Also where there is no such model, so that nobody else ever hears of it.
    for room, model, outcome in (("l" * 32, "echo", "stop"), ("n" * 32, "none-such", "UnknownModel")):
        answer = http.post("/live/act", json={"do": "ask", "room": room, "model": model, **asked})
        assert answer.status_code == 200
        told = in_log(page, rf"serve\.page\.room: chat (chatcmpl-\w+) model='{model}' outcome=(\w+)")
        assert told[2] == outcome
        if model == "echo":
            in_log(controller, rf"serve\.controller: chat {told[1]} goes to {re.escape(worker.url)}$")
            in_log(worker, rf"serve\.chat_answer: chat {told[1]} model='echo' .*outcome=stop")
    assert not any("my-secret" in server.log_text() for server in (controller, worker, page))


# Uploads -----------------------------------------------------------------------------------------------------------


def test_an_uploaded_page_or_drawing_is_refused_and_a_picture_called_one_does_nothing_when_it_is_opened(
    http: httpx.Client,
):
    for name, data in (
        ("a.html", b"<script>alert(1)</script>"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        ("a.js", b"alert(1)"),
    ):
        assert upload(http, name, data).status_code == 400
        [path] = upload(http, name, picture()).json()
        answer = http.get(f"/gradio_api/file={path}")
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["../../../../tmp/evil.png", "/etc/cron.d/evil.png", "..\\..\\evil.png", "a\x00b.png", ".", "x" * 5000]
)
def test_names_of_uploads_lead_nowhere(http: httpx.Client, page: Server, name: str):
    answer = upload(http, name, picture())
    assert answer.status_code < 500
    if answer.status_code == 200:
        [path] = answer.json()
        assert re.search(r"/llava-serve-page-[^/]+/[0-9a-f]{32}/[0-9a-f]{32}/[^/]*$", path)
    assert not Path("/tmp/evil.png").exists()


def test_one_persons_upload_cannot_be_guessed(http: httpx.Client):
    import hashlib

    data = picture()
    [path] = upload(http, "cat.jpg", data).json()
    folder = Path(path).parent
    assert folder.name != hashlib.sha256(data).hexdigest()
    for guess in (hashlib.sha256(data).hexdigest(), "0" * 64, "..", "*"):
        assert http.get(f"/gradio_api/file={folder.parent / guess / 'cat.jpg'}").status_code in (403, 404)
    assert http.get(f"/gradio_api/file={folder}").status_code in (403, 404)
    assert http.get(f"/gradio_api/file={folder.parent}").status_code in (403, 404)


def test_pictures_sent_all_at_once_are_all_their_senders(http: httpx.Client):
    """The browser is known by the cookie that it gets with the page."""
    assert http.get("/").status_code == 200
    with ThreadPoolExecutor(5) as pool:
        sent = pool.map(lambda number: upload(http, "cat.jpg", picture(b"%d" % number)).json(), range(5))
        paths = [path for [path] in sent]
    assert len(set(paths)) == 5
    assert {http.get(f"/gradio_api/file={path}").status_code for path in paths} == {200}


def test_another_browsers_upload_is_not_there_though_its_path_is_known(http: httpx.Client, page: Server):
    sent = upload(http, "cat.jpg", picture(b"mine"))
    [path] = sent.json()
    cookie = sent.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    address = f"/gradio_api/file={path}"
    assert http.get(address).status_code == 200
    with httpx.Client(base_url=page.url, trust_env=False, timeout=60) as other:
        for forged in ("", "x", "a" * 22):
            cookies = {"Cookie": f"{COOKIE}={forged}"} if forged else {}
            for asked in (path, path.replace("/cat", "/./cat"), f"/{path}", path.replace("/", "%2F"), f"{path}/"):
                answer = other.get(f"/gradio_api/file={asked}", headers=cookies)
                assert answer.status_code in (403, 404), asked
                assert picture(b"mine")[:40] not in answer.content
            assert other.get(address, headers=cookies).status_code == 404
        # Who has a cookie for uploads of their own gets those, and no others'.
        [own] = upload(other, "dog.jpg", picture(b"another")).json()
        assert other.get(f"/gradio_api/file={own}").status_code == 200
        assert other.get(address).status_code == 404
        assert http.get(f"/gradio_api/file={own}").status_code == 404
        # Nor may a model be asked what is on it.
        asked = {"do": "ask", "owner": "o" * 32, "place": "chat", "text": "what is it?", "model": "echo"}
        for client, room, claim, status in (
            (other, "p" * 32, {"path": path}, 400),
            (other, "q" * 32, {"path": path, "example": "none-such"}, 400),
            (other, "q" * 32, {"path": own}, 200),
            (http, "r" * 32, {"path": path}, 200),
        ):
            message = {**asked, "room": room, "pictures": [{**claim, "name": "cat.jpg"}]}
            answer = client.post("/live/act", json=message)
            assert answer.status_code == status, answer.text
        components = http.get("/config").json()["components"]
        looked = {"fn_name": "look", "session_hash": "x", "data": [{**asked, "pictures": [{"path": path}]}]}
        looked["component_id"] = next(c["id"] for c in components if "look" in c["props"].get("server_fns", ()))
        for client, refused in ((other, True), (http, False)):
            answer = client.post("/gradio_api/component_server", json=looked)
            assert answer.status_code == 200
            assert ("did not arrive" in answer.text) == refused, answer.text
        # The same picture sent by another is another file.
        [same] = upload(other, "cat.jpg", picture(b"mine")).json()
        assert same != path
        assert (other.get(address).status_code, http.get(address).status_code) == (404, 200)


@pytest.mark.parametrize("in_frames", [False, True])
async def test_where_browsers_keep_no_cookies_a_path_is_enough(tmp_path: Path, in_frames: bool):
    frame = PageFrame(PlainTextResponse("a picture"), Uploads(tmp_path, for_all=in_frames), local=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(frame), base_url="http://localhost") as http:
        found = await http.get(f"/gradio_api/file={tmp_path}/0123/cat.png")
        assert found.status_code == (200 if in_frames else 404)
        # Out of the store: in a folder that nobody guesses.
        assert (await http.get(f"/gradio_api/file={tmp_path}/kept-0123/cat.png")).status_code == 200


BOUNDARY = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n'
MULTIPARTS = {
    "a long tail of the boundary": BOUNDARY + b"--b--" + b"-" * 10_000_000,
    "a name of a megabyte": BOUNDARY.replace(b"a.png", b"a" * 1_000_000) + b"--b--\r\n",
    "ten thousand parts": BOUNDARY * 10_000 + b"--b--\r\n",
    "a field of a hundred megabytes": b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"x" * 100_000_000,
    "no end": BOUNDARY,
    "no boundary": b"\r\n" * 1_000_000,
}


@pytest.mark.parametrize("kind", MULTIPARTS)
def test_no_form_however_odd_holds_the_page_up(page: Server, kind: str):
    before = psutil.Process(page.pid).memory_info().rss
    took: list[float] = []
    with Lateness() as late, being_asked(f"{page.url}/health/live") as health:
        for _ in range(3):
            answer, seconds = post_raw(page.port, MULTIPARTS[kind])
            took.append(seconds)
            status = int(answer.split()[1])
            assert status in (400, 413, 422), answer[:500]
            assert b"Traceback" not in answer
    grown = psutil.Process(page.pid).memory_info().rss - before
    print(
        f"\n{kind}: {status} after {statistics.median(took):.2f} s, {grown / 2**20:.0f} MiB; its health "
        f"was told within {1000 * statistics.median(health):.0f} ms, {late}"
    )
    assert grown < 100 * 2**20
    assert statistics.median(took) < late.allows(1.0)
    assert statistics.median(health) < late.allows(0.1)


def post_raw(port: int, form: bytes) -> tuple[bytes, float]:
    """The answer to an upload, and when it began to come, which may be before the form is sent to its end."""
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(60)

        def send() -> None:
            with suppress(OSError):
                raw.sendall(head % len(form) + form)

        began = time.monotonic()
        sending = threading.Thread(target=send)
        sending.start()
        answer = raw.recv(10_000)
        took = time.monotonic() - began
        with suppress(OSError):
            while piece := raw.recv(10_000):
                answer += piece
        sending.join()
    return answer, took


@contextmanager
def being_asked(url: str) -> Iterator[list[float]]:
    """Somebody asks there all the time, and notes how long each answer takes."""
    times: list[float] = []
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=60) as http:
            while not enough.is_set() or not times:
                began = time.monotonic()
                assert http.get(url).status_code == 200
                times.append(time.monotonic() - began)
                enough.wait(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times
    finally:
        enough.set()
        thread.join()


def test_a_file_over_the_limit_is_refused(http: httpx.Client, page: Server):
    assert upload(http, "big.png", bytes(21 * 2**20)).status_code == 413
    with socket.create_connection(("127.0.0.1", page.port)) as raw:
        raw.settimeout(60)
        kind = b"Content-Type: multipart/form-data; boundary=b"
        raw.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n" + kind)
        raw.sendall(b"\r\nContent-Length: 1000000000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_only_where_pictures_and_chats_are_sent_may_a_body_be_large(http: httpx.Client, servers: Topology):
    large = b'{"x":"' + b"x" * 3_000_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    for path in ("/live/act", "/live/follow", "/gradio_api/cancel", "/gradio_api/reset"):
        answer = http.post(path, content=large, headers=headers)
        assert answer.status_code == 413, path
        assert "larger than 2 MiB" in answer.text
    assert http.post("/login", data={"username": "x" * 3_000_000, "password": "x"}).status_code == 413
    body = {"data": ["echo", "hi" + "x" * 3_000_000], "session_hash": "x", "fn_index": 0}
    for path in ("/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/component_server"):
        assert http.post(path, json=body).status_code != 413, path
    with socket.create_connection(("127.0.0.1", servers.servers[2].port)) as raw:
        raw.settimeout(60)
        raw.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json")
        raw.sendall(b"\r\nContent-Length: 200000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_half_requests_are_hung_up_on(page: Server):
    with Lateness() as late:
        held = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(100)]
        for each in held:
            each.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began, took = time.monotonic(), list[float]()
        assert httpx.get(f"{page.url}/health/live", trust_env=False, timeout=30).status_code == 200
        for each in held:
            each.settimeout(60)
            with suppress(ConnectionError):
                assert each.recv(1000) == b""
            took.append(time.monotonic() - began)
            each.close()
    median = statistics.median(took)
    print(f"\n{len(held)} half heads at the page: hung up on after {median:.1f} s, the last {took[-1]:.1f} s; {late}")
    assert median < late.allows(10)
    assert took[-1] < late.allows(15)


# A page with login -------------------------------------------------------------------------------------------------


def test_who_is_not_logged_in_gets_nothing_but_the_way_in(servers: Topology):
    page, key = servers.servers[3], KEYS["page-guest"]
    with httpx.Client(base_url=page.url, trust_env=False, timeout=30) as http:
        for route in sorted(ASKED):
            path = re.sub(r"\{(\w+)(:path)?\}", "x", route)
            methods = ("POST",) if route.endswith(("join", "component_server", "/upload", "{api_name}")) else ("GET",)
            for method in methods:
                answer = http.request(method, path, json={} if method == "POST" else None)
                assert answer.status_code in (401, 403), f"{method} {path}: {answer.status_code}"
        for path in ("/live/act", "/live/follow"):
            assert http.post(path, json={"do": "open", "room": "r" * 32}).status_code == 401
        assert '"components": []' in http.get("/").text or "auth_required" in http.get("/").text
        assert http.get("/gradio_api/user").json() is None
        for name, shown in (("page-guest", "wrong"), ("eve", key), ("page-guest", "")):
            answer = http.post("/login", data={"username": name, "password": shown})
            assert answer.status_code in (400, 422)
        assert http.post("/login", data={"username": "page-guest", "password": key}).status_code == 200
        cookies = http.post("/login", data={"username": "page-guest", "password": key}).headers.get_list("set-cookie")
        assert cookies
        assert all("httponly" in cookie.lower() and "samesite" in cookie.lower() for cookie in cookies)
        assert http.get("/config").status_code == 200
        opened = http.post("/live/act", json={"do": "open", "room": "r" * 32, "place": "chat"})
        assert (opened.status_code, opened.json()["turns"]) == (200, [])


def test_whose_key_is_revoked_is_logged_in_no_more(servers: Topology):
    page, ring = servers.servers[3], KeyRing(keys_file())
    key = ring.add("page-leaver")
    with httpx.Client(base_url=page.url, trust_env=False, timeout=30) as http:

        def ask() -> int:
            return http.post("/live/act", json={"do": "open", "room": "r" * 32, "place": "chat"}).status_code

        for _ in range(100):  # the page looks into the file twice a second
            if http.post("/login", data={"username": " page-leaver ", "password": key}).status_code == 200:
                break
            time.sleep(0.1)
        assert ask() == 200
        [path] = upload(http, "a.jpg", picture()).json()
        ring.revoke("page-leaver")
        for _ in range(100):
            if ask() == 401:
                break
            time.sleep(0.1)
        assert ask() == 401
        assert http.get("/config").status_code == 401
        assert http.get(f"/gradio_api/file={path}").status_code in (401, 404)
        assert upload(http, "a.jpg", picture()).status_code == 401


def test_another_key_of_the_same_name_does_not_keep_the_old_ones_holder_logged_in(tmp_path: Path):
    ring = KeyRing(tmp_path / "keys.json")
    doorman, old = Doorman(ring), ring.add("ann")
    assert doorman("ann", old)
    assert doorman.knows("thief", "ann")
    ring.revoke("ann")
    new = ring.add("ann")
    assert not doorman.knows("thief", "ann")
    assert doorman("ann", new)
    assert doorman.knows("anns", "ann")
    assert not doorman.knows("never", "bob")


def test_a_large_body_is_not_waited_for_before_its_sender_has_logged_in(servers: Topology):
    for path in (b"queue/join", b"component_server", b"call/ask", b"run/ask", b"upload"):
        with socket.create_connection(("127.0.0.1", servers.servers[3].port)) as raw:
            raw.settimeout(10)
            kind = (
                b"Content-Type: multipart/form-data; boundary=b"
                if path == b"upload"
                else b"Content-Type: application/json"
            )
            raw.sendall(b"POST /gradio_api/%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (path, kind))
            raw.sendall(b"Content-Length: 10000000\r\n\r\n{")
            assert raw.recv(100).startswith(b"HTTP/1.1 401"), path


# What listens ------------------------------------------------------------------------------------------------------


def test_after_a_full_start_only_this_machine_is_listened_to(servers: Topology):
    listening: set[tuple[str, int]] = set()
    for server in servers.servers:
        if server.process.poll() is None:
            for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)):
                listening |= {
                    (each.laddr.ip, each.laddr.port)
                    for each in process.net_connections("inet")
                    if each.status == psutil.CONN_LISTEN
                }
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    known = {s.port for s in servers.servers if s.process.poll() is None} | {int(servers.api_url.rpartition(":")[2])}
    assert {port for _, port in listening} == known
    assert os.environ.get("GRADIO_SHARE")
