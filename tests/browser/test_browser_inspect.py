"""The Inspect and Status tabs in a browser: what a model sees, and what the workers do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.browser.conftest import NewDesk
from tests.browser.pictures import save
from tests.browser.test_browser_looks import contrast
from tests.topology import Server, Topology

SLOW_MS = 60_000
LOOKS = pytest.mark.parametrize(("phone", "dark"), [(False, False), (True, True)], ids=["desktop", "phone, dark"])


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """A worker that tells what it sees, cutting pictures into tiles, and one that tells nothing."""
    with Topology(tmp_path_factory.mktemp("inspected")) as made:
        made.controller()
        seer = made.start("worker-seer", "tests.browser.seer", ("--controller", made.controller_url))
        echo = made.worker("echo", wait=False)
        for worker in (seer, echo):
            worker.until_ready("/health/ready", 120)
            made.until_listed(worker)
        yield made


@pytest.fixture(scope="module")
def page_of_both(topology: Topology, examples: Path) -> Server:
    return topology.page(extra=("--examples", str(examples)))


def turn_to(page: Page, tab: str) -> None:
    """On a phone the last tabs are behind a button."""
    button = page.locator(f"#ls-tab-{tab.lower()}-button")
    expect(page.locator(".ls-picker").first).to_be_visible(timeout=SLOW_MS)
    try:
        # It may be seen for a moment before the page finds that there is no room for it.
        button.click(timeout=2_000)
    except PlaywrightTimeout:
        page.get_by_role("button", name="More tabs").click()
        page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click()


def choose(page: Page, model: str) -> None:
    page.locator(".ls-view-inspect .ls-picker").click()
    page.get_by_role("option", name=re.compile(f"^{model}")).click()
    expect(page.locator(".ls-view-inspect .ls-picker-name")).to_have_text(model)


def looking_through_echo(new_desk: NewDesk, server: Server, tmp_path: Path, model: str = "echo") -> Locator:
    """The Inspect tab with a picture in it, of an engine that tells nothing about itself."""
    page = new_desk(url=server.url, query=f"/?model={model}", ready=False).page
    turn_to(page, "Inspect")
    view = page.locator(".ls-view-inspect")
    choose(page, model)
    view.locator("input[type=file]").set_input_files(save(tmp_path, "a.png", 64, 48))
    return view


def sideways(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


@LOOKS
def test_a_picture_shows_its_tiles_prompt_probabilities_and_where_a_word_looked(
    new_desk: NewDesk, page_of_both: Server, tmp_path: Path, phone: bool, dark: bool
) -> None:
    page = new_desk("seer", url=page_of_both.url, phone=phone, dark=dark, query="/?model=seer", ready=False).page
    turn_to(page, "Inspect")
    view = page.locator(".ls-view-inspect")
    choose(page, "seer")
    view.locator("input[type=file]").set_input_files(save(tmp_path, "wide.png", 200, 120))
    view.get_by_label("Question").fill("What is <image> here?")
    expect(view.locator(".ls-inspect-facts")).to_contain_text("in 5 tiles", timeout=SLOW_MS)
    expect(view.locator(".ls-inspect-tiles li")).to_have_count(5)
    prompt = view.get_by_role("region", name="The prompt as the model reads it")
    expect(prompt).to_contain_text("What is <image> here?", timeout=SLOW_MS)
    expect(prompt.locator(".ls-piece-picture")).to_have_text(re.compile("picture 1 × [0-9]+"))
    expect(prompt.locator(".ls-piece-special").first).to_have_text("<s>")
    view.get_by_role("button", name="Ask").click()
    heat = view.locator("canvas[aria-label^='Where the model looked']")
    expect(heat).to_be_visible(timeout=SLOW_MS)
    expect(view.locator(".ls-inspect-top tbody tr")).to_have_count(5)
    assert contrast(page, ".ls-inspect-legend") > 4.5
    told = view.locator(".ls-inspect-facts p").first
    before = told.inner_text()
    view.locator(".ls-token").first.click()
    expect(view.locator(".ls-token.ls-chosen").first).to_have_attribute("data-place", "0")
    expect(told).not_to_have_text(before, timeout=SLOW_MS)
    view.get_by_role("button", name="One layer").click()
    view.get_by_role("slider", name="Layer").fill("1")
    expect(told).to_contain_text("layer’s attention")
    with page.expect_download() as started:
        view.get_by_role("button", name="PNG").click()
    assert started.value.suggested_filename.endswith("-layer-1.png")
    assert Image.open(started.value.path()).size == (200, 120)
    assert not sideways(page)


def test_an_engine_that_cannot_tell_says_so_and_still_answers(
    new_desk: NewDesk, page_of_both: Server, tmp_path: Path
) -> None:
    view = looking_through_echo(new_desk, page_of_both, tmp_path)
    expect(view.get_by_role("status")).to_contain_text("another engine (echo)", timeout=SLOW_MS)
    view.get_by_label("Question").fill("Hello there")
    view.get_by_role("button", name="Ask").click()
    expect(view.locator(".ls-inspect-plain")).to_contain_text("Hello there", timeout=SLOW_MS)
    expect(view).to_contain_text("does not tell how sure it is")


def test_after_what_went_wrong_one_can_ask_again_and_the_old_trouble_goes(
    new_desk: NewDesk, page_of_both: Server, tmp_path: Path
) -> None:
    view = looking_through_echo(new_desk, page_of_both, tmp_path)
    notice, ask, question = (
        view.get_by_role("status"),
        view.get_by_role("button", name="Ask"),
        view.get_by_label("Question"),
    )
    question.fill("x" * 200_001)
    ask.click()
    expect(notice).to_contain_text("shorten it", timeout=SLOW_MS)
    question.fill("Hello there")
    ask.click()
    expect(view.locator(".ls-inspect-plain")).to_contain_text("Hello there", timeout=SLOW_MS)
    expect(notice).to_contain_text("another engine (echo)")


def test_an_answer_that_a_limit_refuses_leaves_the_tab_ready_to_ask_again(
    new_desk: NewDesk, topology: Topology, examples: Path, tmp_path: Path
) -> None:
    limited = topology.page(extra=("--examples", str(examples), "--address-rate", "1/day"))
    view = looking_through_echo(new_desk, limited, tmp_path)
    ask = view.get_by_role("button", name="Ask")
    view.get_by_label("Question").fill("Hello there")
    ask.click()
    expect(view.locator(".ls-inspect-plain")).to_contain_text("Hello there", timeout=SLOW_MS)
    ask.click()
    expect(view.get_by_role("status")).to_contain_text(re.compile("1 .*day"), timeout=SLOW_MS)
    expect(ask).to_be_enabled()


def test_a_server_lost_in_the_middle_of_an_answer_is_told_and_one_can_ask_again(
    new_desk: NewDesk, topology: Topology, examples: Path, tmp_path: Path
) -> None:
    topology.worker("endless", delay_s=600.0)
    server = topology.page(extra=("--examples", str(examples)))
    view = looking_through_echo(new_desk, server, tmp_path, "endless")
    notice, ask = view.get_by_role("status"), view.get_by_role("button", name="Ask")
    view.locator("[data-example]").first.click()  # uploads are gone with their server
    view.get_by_label("Question").fill("Hello there")
    ask.click()
    expect(ask).to_be_disabled()
    expect(view.locator(".ls-inspect-plain")).to_contain_text("I", timeout=SLOW_MS)
    server.kill()
    expect(notice).to_contain_text("lost before the answer was there", timeout=SLOW_MS)
    expect(ask).to_be_enabled()
    topology.page(port=server.port, extra=("--examples", str(examples)))
    choose(view.page, "echo")
    ask.click()
    expect(view.locator(".ls-inspect-plain")).to_contain_text("Hello there", timeout=SLOW_MS)


@LOOKS
def test_the_status_changes_in_place_and_names_a_worker_that_has_gone(
    new_desk: NewDesk, topology: Topology, page_of_both: Server, phone: bool, dark: bool
) -> None:
    guest = topology.worker("guest", wait=False)
    guest.until_ready("/health/ready", 120)
    topology.until_listed(guest)
    page = new_desk(url=page_of_both.url, query="/?model=echo", phone=phone, dark=dark, ready=False).page
    turn_to(page, "Status")
    rows = page.locator(".ls-status-table tbody tr")
    mine = rows.filter(has_text="guest").filter(has=page.locator(".ls-status-state", has_text="ready"))
    expect(mine).to_have_count(1, timeout=SLOW_MS)
    expect(rows.filter(has_text="seer")).to_contain_text("GiB", timeout=SLOW_MS)
    row = mine.element_handle()
    assert row is not None
    row.evaluate("node => { node.known = true }")
    guest.kill()
    page.wait_for_function("node => node.dataset.state === 'gone'", arg=row, timeout=SLOW_MS)
    assert row.evaluate("node => node.known && node.isConnected")
    expect(page.get_by_role("alert")).to_contain_text("guest has gone", timeout=SLOW_MS)
    assert "127.0.0.1" not in page.locator(".ls-status").inner_text()
    assert not sideways(page)
