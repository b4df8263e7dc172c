"""The list of chats: what was said is found, gone on with, renamed and deleted, after a restart of everything too."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import NewDesk
from tests.browser.desk import Desk
from tests.browser.pictures import save
from tests.topology import Topology


def rows(desk: Desk) -> Locator:
    return desk.page.locator(".ls-history .ls-chat-open")


def row(desk: Desk, title: str) -> Locator:
    return desk.page.locator(".ls-chat-item", has_text=title)


def search(desk: Desk) -> Locator:
    return desk.page.get_by_role("searchbox", name="Search your chats")


def do(desk: Desk, title: str, what: str) -> None:
    row(desk, title).hover()
    row(desk, title).locator(".ls-chat-more").click()
    desk.page.locator(".ls-menu").get_by_role("button", name=what).click()


def begin(desk: Desk, *questions: str) -> None:
    """A chat for each question."""
    for place, question in enumerate(questions):
        if place:
            desk.button("New chat").click()
            expect(desk.turns).to_have_count(0)
        desk.ask(question)
        expect(row(desk, question)).to_be_visible()


def test_chats_are_listed_opened_and_gone_on_with(desk: Desk, tmp_path: Path) -> None:
    desk.ask("What is on the picture?", save(tmp_path, "a.png", 64, 48))
    desk.button("New chat").click()
    desk.ask("Something else")
    expect(rows(desk)).to_have_count(2)
    expect(rows(desk).first).to_have_attribute("aria-current", "true")
    row(desk, "What is on").click()
    expect(desk.turns.last.locator(".ls-picture img")).to_be_visible()
    expect(rows(desk).last).to_have_attribute("aria-current", "true")
    desk.ask("And more?")
    expect(desk.answer).to_contain_text("I received 3 turns and 1 image.")
    expect(rows(desk).first).to_contain_text("What is on the picture?")
    desk.page.reload()
    expect(desk.turns).to_have_count(2)
    expect(rows(desk)).to_have_count(2)


def ask_with(desk: Desk, system: str) -> None:
    desk.button("Settings").click()
    desk.page.get_by_role("textbox", name="System prompt").fill(system)
    desk.page.keyboard.press("Escape")


def test_a_chat_goes_on_with_its_own_system_prompt_and_a_new_one_with_the_composers(desk: Desk) -> None:
    ask_with(desk, "Be brief.")
    desk.ask("older")
    ask_with(desk, "Be kind.")
    desk.button("New chat").click()
    begin(desk, "newer")
    for title, system in (("older", "Be brief."), ("newer", "Be kind.")):
        row(desk, title).click()
        expect(desk.turns.first).to_contain_text(title)
        desk.ask("And now?")
        expect(desk.answer).to_contain_text(f"System prompt: {system}")
    row(desk, "older").click()
    expect(desk.turns.first).to_contain_text("older")
    desk.page.reload()
    desk.button("Settings").click()
    expect(desk.page.get_by_role("textbox", name="System prompt")).to_have_value("Be brief.")
    desk.page.get_by_role("button", name="As in new chats").click()
    expect(desk.page.get_by_role("textbox", name="System prompt")).to_have_value("Be kind.")
    desk.page.keyboard.press("Escape")
    row(desk, "older").click()
    desk.button("New chat").click()
    desk.ask("newest")
    expect(desk.answer).to_contain_text("System prompt: Be kind.")


def test_other_browsers_see_other_lists(new_desk: NewDesk) -> None:
    mine, yours = new_desk(), new_desk()
    begin(mine, "my secret")
    begin(yours, "yours")
    expect(rows(yours)).to_have_count(1)
    yours.page.reload()
    expect(rows(yours)).to_have_count(1)


def test_a_search_finds_words_of_answers_and_shows_where(desk: Desk) -> None:
    begin(desk, "alpha", "beta")
    search(desk).fill("SAID: alpha")
    expect(rows(desk)).to_have_count(1)
    expect(rows(desk).locator("small")).to_contain_text("You said: alpha")
    search(desk).fill("nowhere")
    expect(desk.page.locator(".ls-history-none")).to_have_text("No chat has these words.")
    search(desk).press("Escape")
    expect(rows(desk)).to_have_count(2)


def test_a_chat_is_renamed_and_keeps_its_name(desk: Desk) -> None:
    begin(desk, "first words")
    do(desk, "first words", "Rename")
    desk.page.get_by_role("textbox", name="The chat's name").fill("A better name")
    desk.page.keyboard.press("Enter")
    expect(row(desk, "A better name")).to_be_visible()
    desk.ask("more words")
    desk.page.reload()
    expect(rows(desk)).to_have_text(re.compile("A better name"))


def test_a_chat_is_deleted_only_after_asking_and_then_for_good(desk: Desk) -> None:
    begin(desk, "to keep", "to delete")
    do(desk, "to delete", "Delete")
    desk.page.get_by_role("button", name="Keep", exact=True).click()
    expect(rows(desk)).to_have_count(2)
    do(desk, "to delete", "Delete")
    desk.page.locator(".ls-asking").get_by_role("button", name="Delete").click()
    expect(rows(desk)).to_have_count(1)
    expect(desk.turns).to_have_count(0)
    desk.page.reload()
    expect(rows(desk)).to_have_text(re.compile("to keep"))


def test_a_deleted_chat_is_gone_from_every_place_that_shows_it(desk: Desk) -> None:
    desk.turn_to("Compare")
    desk.ask("compared")
    desk.turn_to("Chat")
    another = desk.page.context.new_page()  # of the same browser
    another.goto(desk.url)
    another.locator(".ls-chat-open").first.click()
    shown = another.locator(".ls-view-compare .ls-turn")
    expect(shown).to_have_count(2)
    do(desk, "compared", "Delete")
    desk.page.locator(".ls-asking").get_by_role("button", name="Delete").click()
    expect(rows(desk)).to_have_count(0)
    expect(shown).to_have_count(0)
    desk.turn_to("Compare")
    expect(desk.turns).to_have_count(0)


def test_all_chats_can_be_deleted_from_where_the_page_says_what_is_kept(desk: Desk) -> None:
    begin(desk, "one", "two")
    desk.button("What is kept?").click()
    expect(desk.page.locator(".ls-kept")).to_contain_text("kept on this server until you delete them")
    desk.page.locator(".ls-kept").get_by_role("button", name="Delete all my chats").click()
    desk.page.get_by_role("button", name="Delete all", exact=True).click()
    expect(rows(desk)).to_have_count(0)
    expect(desk.turns).to_have_count(0)


def test_the_list_is_used_by_keyboard_alone(desk: Desk) -> None:
    begin(desk, "older", "newer")
    search(desk).focus()
    desk.page.keyboard.press("ArrowDown")
    expect(rows(desk).first).to_be_focused()
    desk.page.keyboard.press("ArrowDown")
    expect(rows(desk).last).to_be_focused()
    desk.page.keyboard.press("Enter")
    expect(desk.turns.first.locator(".ls-bubble")).to_have_text("older")
    rows(desk).last.focus()
    desk.page.keyboard.press("F2")
    desk.page.keyboard.type("renamed")
    desk.page.keyboard.press("Enter")
    expect(row(desk, "renamed").locator(".ls-chat-open")).to_be_focused()
    desk.page.keyboard.press("Delete")
    expect(desk.page.locator(".ls-asking")).to_contain_text("Delete “renamed”?")
    desk.page.keyboard.press("Escape")
    expect(desk.page.locator(".ls-asking")).to_have_count(0)


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_the_list_is_a_drawer(new_desk: NewDesk, dark: bool) -> None:
    desk = new_desk(phone=True, dark=dark)
    desk.ask("on a phone")
    drawer = desk.page.get_by_role("navigation", name="Your chats")
    expect(drawer).to_be_hidden()
    toggle = desk.button("Your chats")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    toggle.click()
    expect(drawer).to_be_in_viewport()
    expect(search(desk)).to_be_focused()
    desk.page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    expect(toggle).to_be_focused()
    toggle.click()
    desk.page.locator(".ls-history").get_by_role("button", name="New chat").click()
    expect(drawer).to_be_hidden()
    expect(desk.turns).to_have_count(0)
    toggle.click()
    row(desk, "on a phone").locator(".ls-chat-open").click()
    expect(drawer).to_be_hidden()
    expect(desk.turns).to_have_count(1)
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_list_that_was_closed_stays_closed(desk: Desk) -> None:
    drawer = desk.page.get_by_role("navigation", name="Your chats")
    expect(drawer).to_be_visible()
    desk.button("Your chats").click()
    expect(drawer).to_be_hidden()
    desk.page.reload()
    expect(desk.pickers).to_be_enabled()
    expect(drawer).to_be_hidden()


def test_an_answer_goes_on_while_another_chat_is_looked_at(new_desk: NewDesk) -> None:
    desk = new_desk("steady")
    desk.ask("word " * 20, wait=False)
    desk.wait_streaming()
    desk.button("New chat").click()
    expect(desk.turns).to_have_count(0)
    expect(row(desk, "word").locator(".ls-chat-running")).to_be_visible()
    row(desk, "word").click()
    desk.wait_done()
    expect(desk.turns.last).to_have_attribute("data-state", "done")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Topology]:
    with Topology(tmp_path) as servers:
        yield servers


def test_everything_killed_in_the_middle_of_a_chat_is_there_again(
    own: Topology, new_desk: NewDesk, tmp_path: Path
) -> None:
    controller = own.controller()
    worker = own.worker("steady", delay_s=0.1)
    page = own.page()
    desk = new_desk("steady", url=page.url)
    desk.ask("What is it?", save(tmp_path, "a.png", 64, 48))
    desk.ask("word " * 60, wait=False)
    desk.page.wait_for_function("document.querySelector('.ls-turn:last-child .ls-answer-text').innerText.length > 60")
    before = desk.reply()
    for server in (page, worker, controller):
        server.kill()

    own.controller(port=controller.port)
    own.worker("steady", delay_s=0.01, port=worker.port)
    own.page(port=page.port)
    notice = desk.turns.last.locator(".ls-notice")
    expect(notice).to_contain_text("This answer was cut off", timeout=30_000)
    assert desk.reply()[:30] == before[:30]
    expect(desk.turns).to_have_count(2)
    desk.page.goto(f"{page.url}/?model=steady")
    expect(desk.turns).to_have_count(2)
    expect(desk.turns.first.locator(".ls-picture img")).to_be_visible()
    assert desk.page.evaluate("document.querySelector('.ls-picture img').naturalWidth") == 64
    expect(rows(desk)).to_have_text(re.compile("What is it"))
    notice.get_by_role("button", name="Continue").click()
    desk.wait_done()
    expect(desk.turns.last).to_have_attribute("data-state", "done")
    assert desk.reply()[:30] == before[:30]
    desk.ask("Still the same picture?")
    expect(desk.answer).to_contain_text("I received 5 turns and 1 image.")


def test_a_database_that_fails_is_told_and_the_chat_goes_on(own: Topology, new_desk: NewDesk, tmp_path: Path) -> None:
    own.controller()
    own.worker("quick", delay_s=0.001)
    (tmp_path / "kept").write_text("no folder")
    page = own.page(extra=("--database-url", f"sqlite:///{tmp_path}/kept/chats.db"))
    desk = new_desk(url=page.url)
    desk.ask("Are you there?")
    expect(desk.answer).to_contain_text("I received 1 turn")
    expect(desk.bar).to_contain_text("Chats go on but are not kept at the moment: this server's database")
    expect(desk.bar).to_contain_text("1 chat waits")
    expect(desk.page.locator(".ls-history-trouble")).to_contain_text("cannot be listed")
    (tmp_path / "kept").unlink()
    expect(desk.bar).to_be_hidden(timeout=30_000)
    expect(row(desk, "Are you there?")).to_be_visible()


def test_the_list_goes_on_with_older_chats(own: Topology, new_desk: NewDesk, tmp_path: Path) -> None:
    own.controller()
    own.worker("quick", delay_s=0.001)
    desk = new_desk(url=own.page().url)
    begin(desk, "the latest")
    with closing(sqlite3.connect(tmp_path / "chats.db")) as database, database:
        database.execute(
            """INSERT INTO conversations (id, owner, title, named, place, system, serial, created_at, updated_at)
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 305)
            SELECT 'older-' || i, owner, 'older ' || i, 0, place, '', 0, created_at, datetime(updated_at, -i || ' days')
            FROM n, conversations"""
        )
    desk.page.reload()
    expect(rows(desk)).to_have_count(300)
    desk.page.get_by_role("button", name="Show older chats").click()
    expect(rows(desk)).to_have_count(306)
    expect(rows(desk).nth(300)).to_be_focused()
    expect(desk.page.get_by_role("button", name="Show older chats")).to_have_count(0)


def test_a_chat_that_the_database_refuses_is_told_to_whom_it_belongs(
    own: Topology, new_desk: NewDesk, tmp_path: Path
) -> None:
    own.controller()
    own.worker("quick", delay_s=0.001)
    page = own.page()
    mine, yours = new_desk(url=page.url), new_desk(url=page.url)
    begin(yours, "Fine")
    database = sqlite3.connect(tmp_path / "chats.db", isolation_level=None)
    database.execute(
        "CREATE TRIGGER no BEFORE INSERT ON messages WHEN NEW.text = 'Odd' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    mine.ask("Odd")
    expect(mine.bar).to_contain_text("“Odd” could not be kept as it is now.")
    expect(yours.bar).to_be_hidden()
    database.execute("DROP TRIGGER no")
    database.close()
    mine.ask("And more?")
    expect(mine.bar).to_be_hidden()
    expect(row(mine, "Odd")).to_be_visible()


def test_a_page_that_keeps_nothing_has_no_list_and_says_so(own: Topology, new_desk: NewDesk, tmp_path: Path) -> None:
    own.controller()
    own.worker("quick", delay_s=0.001)
    page = own.page(extra=("--history", "off"))
    desk = new_desk(url=page.url)
    expect(desk.page.locator(".ls-history")).to_have_count(0)
    expect(desk.button("Your chats")).to_have_count(0)
    desk.ask("Remember 42")
    desk.button("What is kept?").click()
    expect(desk.page.locator(".ls-kept")).to_contain_text("Chats are not kept")
    desk.page.keyboard.press("Escape")
    desk.button("New chat").click()
    expect(desk.turns).to_have_count(0)
    desk.button("Bring it back").click()
    expect(desk.turns).to_have_count(1)
    assert not list(tmp_path.glob("*.db"))


def test_a_link_is_made_read_by_others_and_withdrawn(new_desk: NewDesk, desk: Desk, tmp_path: Path) -> None:
    desk.ask("Look at **this**: $x^2$", save(tmp_path, "a.png", 64, 48))
    do(desk, "Look at", "Share")
    desk.page.get_by_role("button", name="Make a link").click()
    address = desk.page.get_by_role("textbox", name="The link").input_value()
    assert address.startswith(desk.url.split("/?")[0] + "/shared/")
    desk.page.keyboard.press("Escape")
    desk.ask("said later")
    other = new_desk(phone=True, dark=True)
    other.page.goto(address)
    expect(other.page.get_by_role("heading", level=1)).to_contain_text("Look at")
    expect(other.page.locator(".ls-answer-text")).to_contain_text("You said: Look at this")
    expect(other.page.locator(".ls-answer-text .katex").first).to_be_visible()
    other.page.wait_for_function("document.querySelector('.ls-picture img').naturalWidth === 64")
    expect(other.page.get_by_text("said later")).to_have_count(0)
    assert other.page.evaluate("document.documentElement.scrollWidth") <= 390
    do(desk, "Look at", "Share")
    desk.page.get_by_role("button", name="Withdraw").click()
    expect(desk.toast).to_contain_text("no longer works")
    other.page.goto(address)
    expect(other.page.get_by_role("heading", level=1)).to_have_text("Nothing is shared here")


def test_chats_and_comparisons_are_exported_from_the_list(desk: Desk, tmp_path: Path) -> None:
    begin(desk, "alone")
    desk.turn_to("Compare")
    desk.ask("side by side")
    desk.turn_to("Chat")
    with desk.page.expect_download() as started:
        do(desk, "alone", "Export as Markdown")
    assert "You said: alone" in Path(started.value.path()).read_text()
    with desk.page.expect_download() as started:
        do(desk, "side by side", "Export as JSON")
    file = tmp_path / started.value.suggested_filename
    started.value.save_as(file)
    desk.page.locator(".ls-history input[type=file]").set_input_files(file)
    desk.tab = "Compare"
    expect(desk.toast).to_contain_text("The comparison was brought in.")
    for side in "ab":
        expect(desk.column(side).answer).to_contain_text("You said: side by side")
    desk.turn_to("Chat")
    expect(rows(desk)).to_have_count(3)


@pytest.mark.parametrize("kind", ["JSON", "Markdown"])
def test_an_exported_chat_is_brought_in_again(desk: Desk, tmp_path: Path, kind: str) -> None:
    desk.ask("What is it?", save(tmp_path, "a.png", 64, 48))
    file = tmp_path / desk.download(kind).suggested_filename
    desk.download(kind).save_as(file)
    desk.button("New chat").click()
    desk.page.locator(".ls-history input[type=file]").set_input_files(file)
    expect(rows(desk)).to_have_count(2)
    expect(desk.turns).to_have_count(1)
    desk.ask("And now?")
    expect(desk.answer).to_contain_text("I received 3 turns and 1 image.")
    (tmp_path / "no.json").write_text("no chat")
    desk.page.locator(".ls-history input[type=file]").set_input_files(tmp_path / "no.json")
    expect(desk.toast).to_contain_text("The file no.json is no chat that is understood")
