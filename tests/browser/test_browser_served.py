"""The page as a server: for scripts through gradio_client, embedded bare, and recording ratings where told to."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from tests.browser.conftest import NewDesk
from tests.browser.pictures import png
from tests.topology import Server, Topology


@pytest.fixture(scope="module")
def client(page_server: Server, servers: Topology) -> Client:
    return Client(page_server.url, verbose=False)


def test_a_script_lists_the_models_and_watches_an_answer_grow(client: Client) -> None:
    assert "quick" in client.predict(api_name="/models")
    url = "data:image/png;base64," + base64.b64encode(png(64, 48)).decode()
    job = client.submit("quick", "What is it?", [url], api_name="/ask")
    assert "1 image (64x48)" in job.result(timeout=30)
    said = [str(piece) for piece in job.outputs()]
    assert len(said) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(said))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nobody", "hello"), "nobody"),
        (("quick", ""), "nothing to send"),
        (("quick", "hello", ["data:image/png;base64,PGh0bWw+"]), "picture"),
        (("quick", "hello", None, 9.0), "temperature"),
    ],
)
def test_a_script_gets_a_sentence_for_what_cannot_be_done(
    client: Client, arguments: tuple[object, ...], sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        client.predict(*arguments, api_name="/ask")


def test_a_file_of_the_server_cannot_be_fetched(page_server: Server, new_desk: NewDesk) -> None:
    desk = new_desk()
    for path in ("/etc/passwd", str(Path(__file__).resolve()), "../../etc/passwd"):
        answer = desk.page.request.get(f"{page_server.url}/gradio_api/file={path}")
        assert answer.status in (403, 404)
    answer = desk.page.request.get(f"{page_server.url}/examples/../examples.json%00")
    assert answer.status >= 400


def test_embedded_the_page_is_the_bare_chat_and_a_recording_one_says_what_it_keeps(
    new_desk: NewDesk, servers: Topology, tmp_path: Path
) -> None:
    page = servers.page(extra=("--embed", "--record", "--logs", str(tmp_path / "logs")))
    desk = new_desk(url=page.url, query="/?model=quick")
    expect(desk.page.get_by_role("tab")).to_have_count(0)
    expect(desk.page.locator(".ls-header")).to_have_count(0)
    expect(desk.input).to_be_in_viewport()
    desk.ask("Hello")
    desk.button("Bad answer").click()
    expect(desk.toast).to_contain_text("kept on this server")
    desk.button("What is kept?").click()
    expect(desk.page.locator(".ls-kept")).to_contain_text("Pictures are not kept, only their fingerprints")
    (line,) = (tmp_path / "logs" / "feedback.jsonl").read_text().splitlines()
    assert json.loads(line)["rating"] == "dislike"
    assert page.stop() == 0
