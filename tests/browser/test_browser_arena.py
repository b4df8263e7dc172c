"""The arena in the browser: no name before the vote, no vote before both answers, and the leaderboard after it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from serve.store.battles import save_battle
from serve.store.database import Database
from tests.arena.voted import battle
from tests.browser.conftest import NewDesk
from tests.browser.desk import Desk
from tests.browser.test_browser_access import violations
from tests.topology import Server, Topology

NAMES = ("quick", "steady", "slow")
_NAMED = re.compile(r"\b(quick|steady|slow)\b")


@pytest.fixture(scope="module")
def arena_page(servers: Topology, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A page with votes: `quick` mostly wins, `steady` mostly loses, `stranger` was seen once."""
    url = f"sqlite:///{tmp_path_factory.mktemp('arena')}/votes.db"
    database, now = Database(url), datetime.now(UTC)
    database.open()
    with database.writing() as connection:
        for number in range(60):
            a, b = (NAMES[number % 3], NAMES[(number + 1) % 3])
            verdict = "tie" if number % 10 == 9 else "a" if (a == "quick") != (number % 4 == 0) else "b"
            category = ("picture",) if number % 2 else ("text",)
            save_battle(connection, battle(number, a, b, verdict, voted_at=now, categories=category))
        save_battle(connection, battle(99, "stranger", "quick", "a", voted_at=now))
    database.close()
    page = servers.page(extra=("--examples", str(examples), "--database-url", url))
    yield page
    page.stop()


def ballot(desk: Desk) -> Locator:
    return desk.view.locator(".ls-ballot")


@pytest.mark.parametrize(("phone", "dark"), [(False, True), (True, False)])
def test_names_are_told_by_the_vote_alone_and_the_leaderboard_counts_it(
    new_desk: NewDesk, arena_page: Server, phone: bool, dark: bool
) -> None:
    desk = new_desk(tab="Arena", url=arena_page.url, ready=False, phone=phone, dark=dark)
    left = desk.column("left")
    expect(desk.view).to_contain_text("Which answer is better?")
    desk.input.fill("word " * 400)
    desk.send_button.click()
    expect(ballot(desk)).to_have_attribute("data-state", "waiting")
    expect(desk.button("A is better")).to_be_disabled()
    expect(left.last).to_have_attribute("data-state", re.compile("streaming|done"))
    desk.send_button.click()  # it is Stop now
    expect(desk.send_button).to_have_attribute("aria-label", "Send")
    expect(ballot(desk)).to_have_attribute("data-state", "waiting")  # an answer that was stopped is not complete

    desk.input.fill("Hi")
    desk.send_button.click()
    expect(ballot(desk)).to_have_attribute("data-state", "ready")
    assert not _NAMED.search(desk.view.locator(".ls-columns").inner_html())
    expect(desk.button("Export this chat").first).to_be_hidden()
    expect(desk.button("Good answer").first).to_be_hidden()
    keys = ballot(desk).locator(".ls-vote")
    expect(keys.locator("span")).to_have_text(["A is better", "B is better", "Tie", "Both bad"])
    assert [keys.nth(place).get_attribute("aria-keyshortcuts") for place in range(4)] == ["1", "2", "3", "4"]
    desk.input.press("1")  # who writes does not vote
    expect(ballot(desk)).to_have_attribute("data-state", "ready")
    if phone:
        desk.button("A is better").click()
    else:
        desk.input.blur()
        desk.page.keyboard.press("1")
    expect(ballot(desk)).to_have_attribute("data-state", "told")
    expect(desk.view.get_by_role("button", name="New battle").filter(visible=True)).to_have_count(1)
    cards = ballot(desk).locator(".ls-who")
    told = [cards.nth(place).locator("strong").inner_text() for place in (0, 1)]
    assert set(told) < set(NAMES)
    expect(cards.first).to_contain_text(re.compile(r"\d+ → \d+|stays at \d+"))
    expect(left.pane.locator(".ls-blind-name")).to_have_text(told[0])
    expect(left.last.locator(".ls-model-tag")).to_have_text(told[0])
    expect(left.last.locator(".ls-figures")).to_contain_text("to first token")
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= (390 if phone else 1280)

    desk.view.get_by_label("Why, if you like to say").fill("shorter")
    desk.button("Add the reason").click()
    expect(ballot(desk)).to_contain_text("shorter")
    desk.page.reload()
    desk.turn_to("Arena")
    expect(ballot(desk)).to_have_attribute("data-state", "told")
    ballot(desk).get_by_role("button", name="New battle").click()
    expect(left.pane.locator(".ls-blind-name")).to_have_text("Model A")
    expect(desk.turns).to_have_count(0)

    desk.turn_to("Leaderboard")
    with desk.page.expect_download() as started:
        desk.view.get_by_role("button", name="JSONL").click()
    last = json.loads(Path(started.value.path()).read_text().splitlines()[-1])
    assert (last["model_a"], last["model_b"], last["winner"]) == (*told, "model_a")
    assert "conversation_a" not in last


def test_who_hears_the_leaderboard_gets_the_pairs_as_a_table(new_desk: NewDesk, arena_page: Server) -> None:
    desk = new_desk(tab="Leaderboard", url=arena_page.url, ready=False)
    pairs = desk.view.get_by_role("table", name="Win rates of pairs")
    expect(pairs.get_by_role("columnheader")).to_have_count(5)
    row = pairs.get_by_role("row").filter(has=desk.page.get_by_role("rowheader", name="stranger", exact=True))
    expect(row.get_by_role("cell")).to_have_text(["100 % of 1", *["never met"] * 2, "–"])
    assert violations(desk) == []


@pytest.mark.parametrize(("phone", "dark"), [(False, False), (True, True)])
def test_the_leaderboard_draws_ratings_intervals_and_pairs(
    new_desk: NewDesk, arena_page: Server, phone: bool, dark: bool
) -> None:
    desk = new_desk(tab="Leaderboard", url=arena_page.url, ready=False, phone=phone, dark=dark)
    rows = desk.view.locator(".ls-table tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("quick")
    expect(desk.view.locator(".ls-unrated")).to_contain_text("stranger")
    expect(desk.view.locator("svg .ls-dot")).to_have_count(3)
    expect(desk.view.locator("svg .ls-cell-rate")).to_have_count(8)
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= (390 if phone else 1280)
    before = desk.view.locator(".ls-summary").inner_text()
    desk.button("With picture").click()
    expect(desk.button("With picture")).to_have_attribute("aria-pressed", "true")
    expect(desk.view.locator(".ls-summary")).to_contain_text("30 blind votes")
    assert desk.view.locator(".ls-summary").inner_text() != before
    desk.view.get_by_label("Voted to").fill("2020-01-01")
    expect(desk.view).to_contain_text("No votes of this kind")
    desk.view.get_by_label("Voted to").fill("")
    desk.button("All").click()
    desk.view.get_by_role("switch", name="Style control").click()
    expect(desk.view.locator(".ls-summary")).to_contain_text("style control needs 50 votes")
    with desk.page.expect_download() as started:
        desk.view.get_by_role("button", name="CSV").click()
    assert Path(started.value.path()).read_text().startswith("rank,model,rating,rating_q025,rating_q975,num_battles")
