"""Pictures in the browser: every way in, and a plain word about those that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import picture_bombs
from tests.browser.desk import Desk
from tests.browser.pictures import png, save


def test_pictures_come_by_the_button_by_pasting_and_by_dropping(desk: Desk, tmp_path: Path) -> None:
    with desk.page.expect_file_chooser() as chooser:
        desk.button("Add pictures").click()
    chooser.value.set_files([save(tmp_path, "picked.png", 11, 12), save(tmp_path, "also.png", 13, 14)])
    desk.paste("image.png", "image/png", png(21, 22))
    desk.drop(("dropped.png", "image/png", png(31, 32)), ("second.png", "image/png", png(33, 34)))
    expect(desk.chips).to_have_count(5)
    desk.ask("All of them?")
    expect(desk.answer).to_contain_text("5 images (11x12, 13x14, 21x22, 31x32, 33x34)")
    shown = desk.turns.last.locator(".ls-picture img")
    expect(shown).to_have_count(5)
    places = shown.evaluate_all("all => all.map(e => e.getBoundingClientRect()).map(box => [box.bottom, box.x])")
    assert places == sorted(places), "the first picture stands first, as the model has it"


def test_a_picture_can_be_taken_off_before_it_is_sent(desk: Desk, tmp_path: Path) -> None:
    desk.attach(save(tmp_path, "a.png", 11, 12), save(tmp_path, "b.png", 13, 14))
    desk.button("Remove a.png").click()
    desk.ask("One?")
    expect(desk.answer).to_contain_text("1 image (13x14)")


def test_a_picture_alone_can_be_sent_and_looked_at_large(desk: Desk, tmp_path: Path) -> None:
    desk.ask("", save(tmp_path, "a.png", 64, 48))
    expect(desk.answer).to_contain_text("1 image (64x48)")
    desk.turns.last.locator(".ls-picture").click()
    expect(desk.page.locator(".ls-lightbox img")).to_be_visible()
    desk.page.keyboard.press("Escape")
    expect(desk.page.locator(".ls-lightbox")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("page.png", b"<html><body>no picture</body></html>"),
        ("broken.png", png(64, 48)[:100]),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ],
)
def test_what_is_only_called_a_picture_is_not_taken_and_can_be_replaced(
    desk: Desk, tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    desk.attach(tmp_path / name)
    expect(desk.toast).to_contain_text(f"'{name}' is no picture that can be looked at here")
    desk.input.fill("What is it?")
    desk.send_button.click()
    expect(desk.page.locator(".ls-toast")).to_have_count(2)
    expect(desk.turns).to_have_count(0)
    desk.button(f"Remove {name}").click()
    desk.ask("And now?", save(tmp_path, "good.png", 64, 48))
    expect(desk.turns).to_have_count(1)
    expect(desk.answer).to_contain_text("I received 1 turn and 1 image.")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("thin.png", picture_bombs.png(1, 20_000), "side"),
        ("vast.png", picture_bombs.png(8_200, 5_000), "pixels"),
    ],
)
def test_a_picture_nobody_should_open_gets_a_sentence_and_the_chat_goes_on(
    desk: Desk, name: str, data: bytes, reason: str
) -> None:
    desk.drop((name, "image/png", data))
    desk.ask("What is it?")
    expect(desk.notice).to_contain_text(re.compile(reason))
    desk.ask("Still there?")
    expect(desk.answer).to_contain_text("I received 1 turn and 0 images.")


def test_a_question_that_failed_is_left_out_of_the_chat_and_says_so(desk: Desk, tmp_path: Path) -> None:
    thin = tmp_path / "thin.png"
    thin.write_bytes(picture_bombs.png(1, 20_000))
    desk.ask("Broken?", thin)
    expect(desk.turns.last).to_contain_text("Left out of the chat")
    desk.ask("Still there?")
    expect(desk.answer).to_contain_text("I received 1 turn and 0 images.")


def test_a_file_over_the_limit_is_refused_at_once(desk: Desk, tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(21 * 1024 * 1024)
    desk.attach(huge)
    expect(desk.toast).to_have_text(re.compile(r"huge\.png is 21\.0 MB; at most 20\.0 MB"))
    expect(desk.chips).to_have_count(0)


def test_what_is_no_picture_is_refused_at_once(desk: Desk) -> None:
    desk.drop(("notes.txt", "text/plain", b"hello"))
    expect(desk.toast).to_contain_text("notes.txt is not a picture")
    expect(desk.chips).to_have_count(0)


def test_an_example_fills_in_its_picture_and_question(desk: Desk) -> None:
    desk.view.locator(".ls-example").nth(2).click()
    expect(desk.input).to_have_value("What is example 2?")
    expect(desk.chips).to_have_count(1)
    desk.button("Why example 2?").click()
    expect(desk.input).to_have_value("Why example 2?")
    desk.send_button.click()
    expect(desk.answer).to_contain_text("1 image (302x200)")
    expect(desk.answer).to_contain_text("You said: Why example 2?")
    desk.turns.first.hover()
    desk.button("Edit and ask again").click()
    desk.ask("Again?")
    expect(desk.answer).to_contain_text("1 image (302x200)")
