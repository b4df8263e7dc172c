"""Two models side by side: one question, two paces, each column its own stop, retry and notice."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import NewDesk
from tests.browser.pictures import save
from tests.topology import Topology


def test_the_fast_column_is_done_while_the_slow_one_still_streams(new_desk: NewDesk, tmp_path: Path) -> None:
    desk = new_desk(tab="Compare", query="/?model=quick")
    desk.pick("slow", place=1)
    left, right = desk.column("left"), desk.column("right")
    desk.ask("Same for both? " + "word " * 12, save(tmp_path, "a.png", 64, 48), wait=False)
    expect(left.last).to_have_attribute("data-state", "done")
    expect(right.last).to_have_attribute("data-state", re.compile("waiting|streaming"))
    expect(right.last).to_have_attribute("data-state", "streaming")
    expect(left.answer).to_contain_text("1 image (64x48)")
    expect(left.last.locator(".ls-figures")).to_contain_text("to first token")
    expect(left.stop).to_be_hidden()
    expect(right.last).to_have_attribute("data-state", "done")
    expect(right.answer).to_contain_text("1 image (64x48)")
    assert left.answer.inner_text() == right.answer.inner_text()

    desk.ask("And again?")
    for column in (left, right):
        expect(column.turns).to_have_count(2)
        expect(column.answer).to_contain_text("I received 3 turns and 1 image.")


def test_one_column_can_be_stopped_and_retried_while_the_other_goes_on(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare", query="/?model=steady")
    desk.pick("slow", place=1)
    left, right = desk.column("left"), desk.column("right")
    desk.ask("word " * 60, wait=False)
    expect(left.last).to_have_attribute("data-state", "streaming")
    left.stop.click()
    expect(left.last).to_have_attribute("data-state", "stopped")
    expect(right.last).to_have_attribute("data-state", "streaming")
    left.pane.get_by_role("button", name="Answer again").click()
    expect(left.last).to_have_attribute("data-state", "streaming")
    expect(left.last.locator(".ls-variants")).to_contain_text("2 of 2")
    expect(right.last).to_have_attribute("data-state", "streaming")
    desk.send_button.click()
    expect(left.last).to_have_attribute("data-state", "stopped")
    expect(right.last).to_have_attribute("data-state", "stopped")


def test_a_column_that_fails_leaves_the_other_alone(new_desk: NewDesk, servers: Topology) -> None:
    doomed = servers.worker("fragile", delay_s=0.08)
    desk = new_desk(tab="Compare", query="/?model=quick")
    desk.pick("fragile", place=1)
    left, right = desk.column("left"), desk.column("right")
    desk.ask("word " * 60, wait=False)
    expect(right.last).to_have_attribute("data-state", "streaming")
    doomed.kill()
    expect(right.last.locator(".ls-notice")).to_contain_text("lost")
    expect(left.last).to_have_attribute("data-state", "done")
    expect(left.pane.locator(".ls-notice")).to_have_count(0)
    desk.pick("quick", place=1)
    right.last.get_by_role("button", name="Retry").click()
    expect(right.last).to_have_attribute("data-state", "done")
    expect(left.last.locator(".ls-variants")).to_have_count(0)


def test_editing_and_clearing_concern_both_columns(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare", query="/?model=quick")
    left, right = desk.column("left"), desk.column("right")
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


def test_on_a_phone_one_column_shows_and_the_other_is_a_tap_away(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare", query="/?model=quick", phone=True)
    left, right = desk.column("left"), desk.column("right")
    desk.ask("Hello", wait=False)
    expect(left.answer).to_contain_text("You said: Hello")
    expect(right.pane).to_be_hidden()
    left.pane.get_by_role("button", name="Column B").click()
    expect(right.pane).to_be_visible()
    expect(right.answer).to_contain_text("You said: Hello")
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
