"""The picker and the models behind it: chosen, switched, gone, back, and none at all."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import NewDesk
from tests.browser.pictures import save
from tests.topology import Server, Topology, token_header


def test_the_address_chooses_the_model_and_its_note_is_beside_it(new_desk: NewDesk) -> None:
    desk = new_desk("steady")
    expect(desk.pickers).to_contain_text("steady")
    expect(desk.pickers).to_contain_text("only repeats what it received")


def test_a_model_that_is_not_there_is_not_asked_and_the_page_says_which_are(new_desk: NewDesk) -> None:
    desk = new_desk("nobody")
    expect(desk.bar).to_contain_text("nobody is not running. Running: ")
    expect(desk.bar).to_contain_text("quick")
    desk.input.fill("Hello")
    expect(desk.send_button).to_be_disabled()
    desk.pick("quick")
    expect(desk.bar).to_be_hidden()
    desk.send_button.click()
    expect(desk.answer).to_contain_text("You said: Hello")


def test_switching_the_model_keeps_the_chat(new_desk: NewDesk, tmp_path: Path) -> None:
    desk = new_desk("quick")
    desk.ask("One", save(tmp_path, "a.png", 64, 48))
    desk.pick("steady")
    desk.ask("Two")
    expect(desk.turns.last.locator(".ls-model-tag")).to_have_text("steady")
    expect(desk.answer).to_contain_text("I received 3 turns and 1 image.")


def test_the_list_follows_the_controller_and_the_choice_stays(new_desk: NewDesk, servers: Topology) -> None:
    desk = new_desk("steady")
    desk.pickers.click()
    expect(desk.page.get_by_role("option", name="later")).to_have_count(0)
    later = servers.worker("later", delay_s=0.002)
    expect(desk.page.get_by_role("option", name="later")).to_be_visible()
    expect(desk.pickers).to_contain_text("steady")
    desk.page.get_by_role("option", name="later").click()
    desk.ask("Hello")
    expect(desk.answer).to_contain_text("You said: Hello")
    assert later.stop() == 0
    expect(desk.pickers).to_contain_text("not running at the moment")
    expect(desk.pickers).to_contain_text("later")


def test_a_worker_killed_mid_stream_leaves_its_words_a_notice_and_a_retry(new_desk: NewDesk, servers: Topology) -> None:
    doomed = servers.worker("doomed", delay_s=0.08)
    desk = new_desk("doomed")
    desk.ask("word " * 80, wait=False)
    desk.wait_streaming()
    expect(desk.answer).to_contain_text("I received 1 turn")
    doomed.kill()
    expect(desk.notice).to_contain_text("The connection to the model was lost")
    expect(desk.answer).to_contain_text("I received 1 turn")
    expect(desk.answer).not_to_contain_text("lost")
    desk.pick("quick")
    desk.notice.get_by_role("button", name="Retry").click()
    expect(desk.turns.last).to_have_attribute("data-state", "done")
    expect(desk.notice).to_have_count(0)
    expect(desk.answer).to_contain_text("I received 1 turn")


def test_a_closed_page_frees_the_worker(new_desk: NewDesk, servers: Topology) -> None:
    worker = servers.worker("watched", delay_s=0.2)
    desk = new_desk("watched")
    desk.ask("word " * 400, wait=False)
    desk.wait_streaming()
    assert queue_length(worker) == 1
    desk.page.close()
    deadline = time.monotonic() + 25
    while queue_length(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert queue_length(worker) == 0
    worker.stop()


def test_without_controller_model_or_server_the_page_says_so_and_goes_on_when_they_are_there(
    new_desk: NewDesk, tmp_path: Path
) -> None:
    with Topology(tmp_path) as own:
        controller = own.controller()
        controller.kill()
        page = own.page(extra=("--model-list-mode", "once"))
        desk = new_desk(url=page.url, query="/", ready=False)
        expect(desk.view).to_contain_text("The models cannot be listed")
        own.controller(port=controller.port)
        expect(desk.view).to_contain_text("No model is running yet")
        expect(desk.view).to_contain_text("./launch.sh --model")
        desk.input.fill("Hello")
        expect(desk.send_button).to_be_disabled()
        own.worker("first", delay_s=0.002)
        expect(desk.view).to_contain_text("Ask about any picture")
        expect(desk.pickers).to_contain_text("first")
        desk.send_button.click()
        expect(desk.answer).to_contain_text("You said: Hello")
        own.worker("second", delay_s=0.002)
        desk.page.reload()
        expect(desk.pickers).to_be_enabled()
        desk.pickers.click()
        expect(desk.page.get_by_role("option")).to_have_count(1)
        desk.page.keyboard.press("Escape")

        page.kill()
        desk.input.fill("Are you there?")
        expect(desk.bar).to_contain_text("server of this page cannot be reached")
        expect(desk.send_button).to_be_disabled()
        own.page(port=page.port)
        expect(desk.bar).to_be_hidden()
        desk.send_button.click()
        expect(desk.answer).to_contain_text("You said: Are you there?")


def queue_length(worker: Server) -> int:
    answer = httpx.post(f"{worker.url}/worker_get_status", headers=token_header(), trust_env=False, timeout=30)
    return int(answer.json()["queue_length"])
