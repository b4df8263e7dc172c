"""Models side by side: one question, as many paces as columns, each with a stop, a retry and a notice of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import NewDesk
from tests.browser.desk import Column, Desk
from tests.browser.pictures import save
from tests.topology import Server, Topology, token_header

LONG_NAME = "Donaudampfschifffahrtsgesellschaftskapitaen-LLaVA-34B-Anweisungsabgestimmt"
FOR_EVER_S = 600.0


@pytest.fixture(scope="module")
def asleep(servers: Topology) -> Iterator[Server]:
    """A model that comes to no first token: its only place is taken by somebody whose answer takes for ever."""
    worker = servers.worker("unready", delay_s=FOR_EVER_S, extra=("--max-running", "1"))
    body = {"model": "unready", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    with httpx.stream(
        "POST", f"{worker.url}/v1/chat/completions", json=body, headers=token_header(), timeout=60, trust_env=False
    ) as answer:
        words = answer.iter_text()
        next(words)
        yield worker
    worker.kill()


@pytest.fixture(scope="module")
def long_name(servers: Topology) -> Iterator[str]:
    worker = servers.worker(LONG_NAME, delay_s=0.002)
    yield LONG_NAME
    worker.kill()


def with_columns(desk: Desk, *models: str) -> list[Column]:
    for _ in models[2:]:
        desk.button("Add a model").click()
    for place, model in enumerate(models):
        desk.pick(model, place)
    return [desk.column(side) for side in "abcd"[: len(models)]]


def test_the_slowest_of_four_delays_no_other_and_each_has_its_own_stop(
    new_desk: NewDesk, asleep: Server, tmp_path: Path
) -> None:
    desk = new_desk(tab="Compare")
    columns = with_columns(desk, "unready", "quick", "steady", "slow")
    desk.ask("Same for all? " + "word " * 12, save(tmp_path, "a.png", 64, 48), wait=False)
    for column in columns[1:]:
        expect(column.last).to_have_attribute("data-state", "done")
        expect(column.answer).to_contain_text("1 image (64x48)")
        expect(column.last.locator(".ls-meters")).to_contain_text("First token")
        expect(column.last.locator(".ls-meters")).to_contain_text("Image")
        expect(column.stop).to_be_hidden()
    assert len({column.answer.inner_text() for column in columns[1:]}) == 1
    expect(columns[0].last).to_have_attribute("data-state", "waiting")
    columns[0].stop.click()
    expect(columns[0].last).to_have_attribute("data-state", "stopped")
    # Three can be voted on; the one that was stopped cannot be the best.
    expect(desk.button("A is best: unready")).to_be_disabled()
    expect(desk.button("B is best: quick")).to_be_enabled()


def meter(column: Column, name: str) -> Locator:
    """What a column's last answer took of something: a bar and a figure."""
    return column.last.locator(".ls-meters > div").filter(has=column.pane.page.get_by_text(name, exact=True))


def test_bars_compare_all_figures_image_and_cached_tokens_among_them(new_desk: NewDesk, tmp_path: Path) -> None:
    desk = new_desk(tab="Compare")
    one, other = with_columns(desk, "quick", "steady")
    desk.ask("Hi", save(tmp_path, "a.png", 64, 48))
    for column in (one, other):
        expect(column.last.locator(".ls-meters dt")).to_have_text(["First token", "Speed", "Length", "Image"])
        expect(meter(column, "Image").locator("b")).to_have_text(re.compile(r"^[\d,]+ tokens$"))
        expect(meter(column, "Image").locator("i")).to_have_attribute("style", "width:100%")
    desk.pick("slow", 1)  # which has seen nothing of this conversation yet
    desk.ask("And now?")
    expect(meter(one, "Cached").locator("i")).to_have_attribute("style", "width:100%")
    expect(meter(other, "Cached").locator("i")).to_have_attribute("style", "width:0%")
    expect(meter(other, "Cached").locator("b")).to_have_text("0 tokens")


def test_a_worker_killed_in_one_of_four_leaves_three_answers_and_one_notice_with_retry(
    new_desk: NewDesk, servers: Topology
) -> None:
    doomed = servers.worker("vanishing", delay_s=FOR_EVER_S)
    desk = new_desk(tab="Compare")
    columns = with_columns(desk, "quick", "steady", "vanishing", "slow")
    desk.ask("word " * 12, wait=False)
    expect(columns[2].last).to_have_attribute("data-state", "streaming")
    doomed.kill()
    expect(columns[2].notices).to_contain_text(re.compile("lost|Nobody is there"))
    for column in (columns[0], columns[1], columns[3]):
        expect(column.last).to_have_attribute("data-state", "done")
    expect(desk.view.locator(".ls-notice")).to_have_count(1)
    desk.pick("quick", 2)
    columns[2].notices.get_by_role("button", name="Retry").click()
    expect(columns[2].last).to_have_attribute("data-state", "done")
    expect(desk.view.locator(".ls-notice")).to_have_count(0)
    for column in (columns[0], columns[1], columns[3]):
        expect(column.pane.locator(".ls-variants")).to_have_count(0)  # nobody else answered again


def test_one_column_is_stopped_and_answers_again_while_the_other_goes_on(new_desk: NewDesk, servers: Topology) -> None:
    endless = servers.worker("unending", delay_s=FOR_EVER_S)
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "unending", "unending")
    desk.ask("Hello", wait=False)
    for column in (left, right):
        expect(column.last).to_have_attribute("data-state", "streaming")
    left.stop.click()
    expect(left.last).to_have_attribute("data-state", "stopped")
    left.pane.get_by_role("button", name="Answer again").click()
    expect(left.last.locator(".ls-variants")).to_contain_text("2/2")
    expect(left.last).to_have_attribute("data-state", "streaming")
    expect(right.last).to_have_attribute("data-state", "streaming")
    desk.send_button.click()  # it is Stop for all now
    for column in (left, right):
        expect(column.last).to_have_attribute("data-state", "stopped")
    endless.kill()


def test_a_model_swapped_in_or_added_gets_the_conversation_so_far(new_desk: NewDesk, tmp_path: Path) -> None:
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "quick", "quick")
    desk.ask("What is it?", save(tmp_path, "a.png", 64, 48))
    desk.pick("steady", 1)
    expect(right.pane).to_contain_text("steady goes on from here and gets the conversation so far")
    right.pane.get_by_role("button", name="Answer the last question too").click()
    expect(right.last.locator(".ls-model-tag")).to_have_text("steady")
    expect(right.last).to_have_attribute("data-state", "done")
    desk.ask("And now?", wait=False)
    for column in (left, right):
        expect(column.turns).to_have_count(2)
        expect(column.answer).to_contain_text("I received 3 turns and 1 image.")
        expect(column.last).to_have_attribute("data-state", "done")
    desk.button("Add a model").click()
    third = desk.column("c")
    expect(third.turns).to_have_count(2)
    expect(third.answer).to_contain_text("I received 3 turns and 1 image.")
    expect(third.last).to_have_attribute("data-state", "done")
    left.choose("Close this column")
    expect(left.pane).to_be_hidden()
    expect(right.pane.locator(".ls-side")).to_have_text("A")
    desk.page.reload()
    desk.turn_to("Compare")
    expect(right.turns).to_have_count(2)
    expect(third.turns).to_have_count(2)
    expect(left.pane).to_be_hidden()


def test_columns_may_have_settings_of_their_own_and_share_a_seed(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "quick", "quick")
    right.choose("Settings of this column")
    desk.page.get_by_role("switch", name="As in the composer").click()
    desk.page.get_by_role("spinbutton", name="Longest answer").fill("64")
    desk.page.keyboard.press("Escape")
    desk.ask("word " * 150, wait=False)
    expect(right.last).to_contain_text("cut off at the token limit")
    expect(left.last).to_have_attribute("data-state", "done")
    expect(left.last).not_to_contain_text("cut off")
    drawn: list[dict[str, object]] = []
    for column in (left, right):
        with desk.page.expect_download() as started:
            column.choose("Export as JSON")
        text = Path(started.value.path()).read_text()
        drawn.append({name: re.findall(rf'"{name}": (\d+)', text) for name in ("seed", "max_tokens")})
    assert drawn[0]["seed"]
    assert drawn[0]["seed"] == drawn[1]["seed"]
    assert (drawn[0]["max_tokens"], drawn[1]["max_tokens"]) == (["512"], ["64"])


def test_differing_words_are_marked_and_counted(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "quick", "quick")
    right.choose("Settings of this column")
    desk.page.get_by_role("switch", name="As in the composer").click()
    desk.page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    desk.page.keyboard.press("Escape")
    desk.ask("Hello")
    desk.view.get_by_role("switch", name="Differences").click()
    expect(right.pane).to_contain_text(re.compile(r"\d+ words differ from A"))
    marked = "() => [...CSS.highlights.get('ls-differs-1') ?? []].map(String).join(' ')"
    assert desk.page.evaluate(marked) == "System prompt: Be brief"
    expect(left.pane).to_contain_text("The others are compared with this column")
    right.pane.get_by_role("button", name="Compare the others with this").click()
    expect(left.pane).to_contain_text("No word differs from B")
    expect(right.pane).to_contain_text(re.compile(r"compared with this column; \d+ words only here"))
    expect(right.pane.locator(".ls-differs")).to_be_focused()
    assert desk.page.evaluate(marked) == "System prompt: Be brief"
    desk.view.get_by_role("switch", name="Differences").click()
    expect(right.pane.locator(".ls-differs")).to_be_hidden()
    assert desk.page.evaluate("CSS.highlights.size") == 0


def test_columns_scroll_together_unless_that_is_switched_off(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "quick", "quick")
    for _ in range(3):
        desk.ask("line\n\n" * 25)
    scrollers = ".ls-view-compare .ls-pane:not([hidden]) .ls-scroll"
    tops = f"() => [...document.querySelectorAll('{scrollers}')].map((node) => Math.round(node.scrollTop))"
    left.pane.locator(".ls-scroll").hover()
    desk.page.mouse.wheel(0, -400)
    desk.page.wait_for_function(f"() => {{ const [a, b] = ({tops})(); return a > 0 && Math.abs(a - b) < 4; }}")
    expect(right.pane.get_by_role("button", name="To the latest answer")).to_be_visible()
    desk.view.get_by_role("switch", name="Scroll together").click()
    left.pane.locator(".ls-scroll").evaluate("node => { node.scrollTop = 0 }")
    desk.page.wait_for_function(f"() => {{ const [a, b] = ({tops})(); return a === 0 && b > 4; }}")


def test_a_conversation_is_carried_over_to_chat_and_the_comparison_stays(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "quick", "steady")
    desk.ask("Carry me")
    right.choose("Continue in Chat")
    chat = desk.page.locator(".ls-view-chat")
    expect(chat.locator(".ls-turn")).to_have_count(1)
    expect(chat.locator(".ls-picker")).to_contain_text("steady")
    desk.tab = "Chat"
    desk.ask("Only here")
    expect(desk.answer).to_contain_text("I received 3 turns")
    desk.turn_to("Compare")
    for column in (left, right):
        expect(column.turns).to_have_count(1)


def test_a_comparison_is_one_entry_of_the_list_and_is_gone_on_with_from_there(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    with_columns(desk, "quick", "steady", "slow")
    desk.ask("Compare me")
    for side in "abc":
        expect(desk.column(side).last).to_have_attribute("data-state", "done")
    desk.column("a").choose("Close this column")
    desk.turn_to("Chat")
    rows = desk.page.locator(".ls-chat-item")
    expect(rows).to_have_count(2)  # what was closed is a chat of its own
    comparison = rows.filter(has_text="compare, 2 columns")
    expect(comparison).to_contain_text("Compare me")
    expect(comparison).to_contain_text("steady, slow")

    # In a tab of the browser that has not shown it, where its columns stand from the left.
    other = Desk(desk.page.context.new_page(), desk.url, "Chat")
    other.open()
    other.page.locator(".ls-chat-item", has_text="compare, 2 columns").locator(".ls-chat-open").click()
    other.tab = "Compare"
    for side, model in (("a", "steady"), ("b", "slow")):
        column = other.column(side)
        expect(column.answer).to_contain_text("You said: Compare me")
        expect(column.pane.locator(".ls-picker")).to_contain_text(model)
    other.ask("And more?")
    for side in "ab":
        expect(other.column(side).answer).to_contain_text("I received 3 turns")
    other.button("New chat").click()
    expect(other.turns).to_have_count(0)
    other.button("Bring it back").click()
    expect(other.turns).to_have_count(4)
    expect(rows).to_have_count(2)

    comparison.hover()
    comparison.locator(".ls-chat-more").click()
    desk.page.locator(".ls-menu").get_by_role("button", name="Delete").click()
    desk.page.locator(".ls-asking").get_by_role("button", name="Delete").click()
    expect(rows).to_have_count(1)
    expect(other.turns).to_have_count(0)
    assert other.complaints == []


def test_a_vote_counts_once_may_be_changed_and_outlives_a_reload(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    with_columns(desk, "quick", "steady")
    expect(desk.button("Tie")).to_be_hidden()
    desk.ask("Hello")
    desk.input.press("2")  # who writes does not vote
    desk.input.fill("")
    vote = desk.button("B is better: steady")
    vote.click()
    expect(vote).to_have_attribute("aria-pressed", "true")
    desk.view.get_by_label("Why, if you like to say").fill("shorter")
    desk.button("Keep the reason").click()
    expect(desk.view).to_contain_text("Your vote and its reason count.")
    desk.page.reload()
    desk.turn_to("Compare")
    expect(vote).to_have_attribute("aria-pressed", "true")
    expect(desk.view.get_by_label("Why, if you like to say")).to_have_value("shorter")
    desk.view.locator(".ls-scroll").first.focus()
    desk.page.keyboard.press("3")
    expect(desk.button("Tie")).to_have_attribute("aria-pressed", "true")
    expect(vote).to_have_attribute("aria-pressed", "false")
    desk.button("Take it back").click()
    expect(desk.button("Tie")).to_have_attribute("aria-pressed", "false")
    desk.turn_to("Leaderboard")
    expect(desk.view).not_to_contain_text("1 blind vote")


def test_editing_and_clearing_concern_all_columns(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    left, right = with_columns(desk, "quick", "quick")
    desk.ask("One")
    left.last.hover()
    left.last.get_by_role("button", name="Edit and ask again").click()
    desk.ask("Uno")
    for column in (left, right):
        expect(column.turns).to_have_count(1)
        expect(column.answer).to_contain_text("You said: Uno")
    desk.button("New chat").click()
    for column in (left, right):
        expect(column.turns).to_have_count(0)
    desk.button("Bring it back").click()
    for column in (left, right):
        expect(column.turns).to_have_count(1)


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_columns_are_pages_to_swipe_or_tap(new_desk: NewDesk, long_name: str, dark: bool) -> None:
    desk = new_desk(tab="Compare", phone=True, dark=dark)
    columns = with_columns(desk, "quick", "slow", long_name)
    pages = desk.view.get_by_role("tab")
    expect(pages).to_have_count(3)
    expect(pages.nth(2)).to_have_attribute("aria-selected", "true")
    desk.ask("x" * 200 + "\n\n| " + "wide | " * 20 + "\n|" + "---|" * 20 + "\n\n```text\n" + "y" * 200 + "\n```")
    for column in columns:
        expect(column.last).to_have_attribute("data-state", "done")
    expect(columns[2].answer).to_be_in_viewport()
    expect(columns[0].answer).not_to_be_in_viewport()
    pages.nth(0).click()
    expect(columns[0].answer).to_be_in_viewport()
    expect(pages.nth(0)).to_have_attribute("aria-selected", "true")
    # A swipe lands on a page, never between two.
    desk.view.locator(".ls-columns").evaluate("row => row.scrollBy({left: 300, behavior: 'smooth'})")
    expect(pages.nth(1)).to_have_attribute("aria-selected", "true")
    desk.page.wait_for_function(
        "() => document.querySelector('.ls-view-compare .ls-columns').scrollLeft === innerWidth"
    )
    pages.nth(1).press("ArrowRight")
    expect(columns[2].answer).to_be_in_viewport()
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("A is best: quick", "All bad", "Add a model", "Send"):
        expect(desk.button(name)).to_be_in_viewport()
