"""A conversation in the browser: asking, watching, stopping, going back, and what the model gets to see of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewDesk
from tests.browser.desk import Desk
from tests.browser.pictures import save


def test_an_answer_is_seen_to_grow_and_ends_with_its_figures(new_desk: NewDesk, tmp_path: Path) -> None:
    desk = new_desk("steady")
    desk.ask("What is this?", save(tmp_path, "a.png", 64, 48), wait=False)
    desk.wait_streaming()
    seen = [desk.reply()]
    for _ in range(2):
        desk.page.wait_for_function(
            "([selector, length]) => document.querySelector(selector).innerText.length > length",
            arg=[".ls-view-chat .ls-turn:last-child .ls-answer-text", len(seen[-1])],
        )
        seen.append(desk.reply())
    assert len(seen[0]) < len(seen[1]) < len(seen[2])
    desk.wait_done()
    expect(desk.answer).to_contain_text("1 image (64x48)")
    figures = desk.turns.last.locator(".ls-figures")
    expect(figures).to_have_text(re.compile(r"\d s to first token.*tokens/s.*16 image tokens"))


def test_three_turns_about_one_picture_then_a_second_are_all_in_context(desk: Desk, tmp_path: Path) -> None:
    desk.ask("What is it?", save(tmp_path, "first.png", 64, 48))
    desk.ask("Which colour?")
    desk.ask("Why?")
    desk.ask("And this one?", save(tmp_path, "second.png", 50, 20))
    expect(desk.answer).to_contain_text("I received 7 turns and 2 images.")
    expect(desk.answer.locator("li")).to_have_count(7)
    expect(desk.answer.locator("li").first).to_contain_text("1 image (64x48)")
    expect(desk.answer.locator("li").last).to_contain_text("1 image (50x20)")
    expect(desk.turns.locator(".ls-picture img")).to_have_count(2)
    expect(desk.turns.last.locator(".ls-figures")).to_contain_text("cached")


def test_stop_keeps_what_was_said_and_the_chat_goes_on(new_desk: NewDesk) -> None:
    desk = new_desk("steady")
    desk.ask("word " * 60, wait=False)
    desk.wait_streaming()
    desk.button("Stop").click()
    desk.wait_done()
    kept = desk.reply()
    assert "I" in kept
    expect(desk.turns.last.locator(".ls-figures")).to_contain_text("stopped")
    desk.pick("quick")
    desk.ask("Go on")
    expect(desk.answer).to_contain_text("I received 3 turns")
    assert desk.turns.first.locator(".ls-answer-text").inner_text() == kept


def test_escape_stops_too(new_desk: NewDesk) -> None:
    desk = new_desk("steady")
    desk.ask("word " * 60, wait=False)
    desk.wait_streaming()
    desk.input.press("Escape")
    desk.wait_done()
    expect(desk.turns.last).to_have_attribute("data-state", "stopped")


def test_retry_gives_another_answer_and_keeps_the_first(desk: Desk) -> None:
    desk.ask("Hello")
    desk.button("Answer again").click()
    expect(desk.turns.last.locator(".ls-variants")).to_contain_text("2/2")
    desk.wait_done()
    desk.button("The answer before").click()
    expect(desk.turns.last.locator(".ls-variants")).to_contain_text("1/2")


def test_editing_asks_anew_and_the_chat_so_far_stays_as_another_branch(desk: Desk, tmp_path: Path) -> None:
    desk.ask("One", save(tmp_path, "a.png", 64, 48))
    desk.ask("Two")
    desk.turns.first.hover()
    desk.turns.first.get_by_role("button", name="Edit and ask again").click()
    expect(desk.input).to_have_value("One")
    expect(desk.chips).to_have_count(1)
    expect(desk.bar).to_contain_text("Rewriting")
    desk.ask("Uno")
    expect(desk.turns).to_have_count(1)
    expect(desk.answer).to_contain_text("1 image (64x48)")
    expect(desk.answer).to_contain_text("You said: Uno")
    desk.button("The wording before").click()
    expect(desk.turns).to_have_count(2)
    expect(desk.turns.first).to_contain_text("One")
    expect(desk.turns.first.locator(".ls-variants-wording")).to_have_text("1/2")
    expect(desk.turns.first.locator(".ls-picture")).to_have_count(1)
    expect(desk.button("The next wording")).to_be_focused()
    desk.page.keyboard.press("Enter")
    expect(desk.turns).to_have_count(1)
    expect(desk.answer).to_contain_text("You said: Uno")


def test_arrow_up_edits_the_last_question_and_escape_lets_it_be(desk: Desk) -> None:
    desk.ask("Helo")
    desk.input.press("ArrowUp")
    expect(desk.input).to_have_value("Helo")
    desk.input.press("Escape")
    expect(desk.input).to_have_value("")
    expect(desk.bar).to_be_hidden()
    expect(desk.turns).to_have_count(1)


def test_undo_takes_the_last_turn_back_into_the_box(desk: Desk) -> None:
    desk.ask("One")
    desk.ask("Two")
    desk.button("Undo the last turn").click()
    expect(desk.turns).to_have_count(1)
    expect(desk.input).to_have_value("Two")
    desk.button("Bring it back").click()
    expect(desk.turns).to_have_count(2)
    expect(desk.input).to_have_value("")


def test_a_new_chat_forgets_and_the_old_one_can_be_brought_back(desk: Desk) -> None:
    desk.ask("Remember 42")
    desk.button("New chat").click()
    expect(desk.turns).to_have_count(0)
    expect(desk.view.locator(".ls-example").first).to_be_visible()
    desk.button("Bring it back").click()
    expect(desk.turns).to_have_count(1)
    desk.button("New chat").click()
    expect(desk.turns).to_have_count(0)
    desk.ask("Anything?")
    expect(desk.answer).to_contain_text("I received 1 turn")


@pytest.mark.parametrize(
    "typed", ["<image>", "</s>", "[INST] x [/INST]", "<|im_start|>system", "USER: hi", "<b>bold</b>"]
)
def test_what_looks_special_is_shown_and_received_as_it_was_typed(desk: Desk, typed: str) -> None:
    desk.ask(f"say {typed} now")
    expect(desk.turns.last.locator(".ls-bubble")).to_have_text(f"say {typed} now")
    expect(desk.answer).to_contain_text(f"You said: say {typed} now")
    expect(desk.answer).to_contain_text("0 images")


def test_markdown_code_and_formulas_are_set_and_nothing_in_them_acts(desk: Desk) -> None:
    desk.ask(
        "**bold** $x^2$ <img src=x onerror=\"document.title='hacked'\"> ![dot](https://example.com/dot.png)\n\n"
        "```python\nprint('hi')\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\\[ \\frac{1}{2} \\]"
    )
    expect(desk.answer.locator("strong")).to_have_text("bold")
    expect(desk.answer.locator(".katex").first).to_be_visible()
    expect(desk.answer.locator(".katex-display")).to_have_count(1)
    expect(desk.answer.locator("table td")).to_have_count(2)
    expect(desk.answer.locator("img")).to_have_count(0)
    expect(desk.answer).to_contain_text("not loaded from example.com")
    assert desk.page.title() == "LLaVA Serve"
    desk.answer.locator(".ls-code-copy").click()
    assert desk.page.evaluate("navigator.clipboard.readText()") == "print('hi')\n"


def test_an_answer_can_be_copied_as_it_was_written(desk: Desk) -> None:
    desk.ask("**bold**")
    desk.button("Copy the answer").click()
    assert "**bold**" in desk.page.evaluate("navigator.clipboard.readText()")


def test_a_long_paste_stays_text(desk: Desk) -> None:
    desk.ask("long " * 1000)
    expect(desk.answer).to_contain_text("1000 words")
    expect(desk.chips).to_have_count(0)
    folded = desk.turns.last.locator(".ls-bubble").bounding_box()
    desk.button("Show all").click()
    whole = desk.turns.last.locator(".ls-bubble").bounding_box()
    assert folded is not None
    assert whole is not None
    assert whole["height"] > folded["height"]


def test_two_browsers_do_not_see_each_others_chats(new_desk: NewDesk) -> None:
    mine, yours = new_desk(), new_desk()
    mine.ask("mine")
    yours.ask("yours")
    expect(mine.turns).to_have_count(1)
    expect(yours.turns).to_have_count(1)
    expect(yours.answer).to_contain_text("I received 1 turn")
    mine.page.reload()
    expect(mine.answer).to_contain_text("You said: mine")


def test_a_reload_finds_the_answer_still_streaming(new_desk: NewDesk) -> None:
    desk = new_desk("steady")
    desk.ask("word " * 80, wait=False)
    desk.wait_streaming()
    desk.input.fill("a draft")
    desk.page.reload()
    desk.wait_streaming()
    expect(desk.input).to_have_value("a draft")
    desk.button("Stop").click()
    desk.wait_done()


def test_settings_reach_the_model_and_stay(desk: Desk) -> None:
    desk.button("Settings").click()
    desk.page.locator(".ls-settings textarea[name=system]").fill("Answer in rhyme.")
    desk.page.locator(".ls-settings input[name=max_tokens]").fill("64")
    desk.page.keyboard.press("Escape")
    desk.ask("word " * 80)
    expect(desk.turns.last.locator(".ls-figures")).to_contain_text("cut off at the token limit")
    cut = desk.reply()
    desk.button("Continue").click()
    expect(desk.turns.last.locator(".ls-figures")).not_to_contain_text("cut off")
    desk.wait_done()
    assert len(desk.reply()) > len(cut)
    desk.page.reload()
    desk.ask("Hello")
    expect(desk.answer).to_contain_text("System prompt: Answer in rhyme.")


def test_a_rating_is_noted_and_the_page_says_that_it_is_not_kept(desk: Desk) -> None:
    desk.ask("Hello")
    desk.button("Good answer").click()
    expect(desk.button("Good answer")).to_have_attribute("aria-pressed", "true")
    expect(desk.toast).to_contain_text("keeps no other record")
    desk.button("What is kept?").click()
    expect(desk.page.locator(".ls-kept")).to_contain_text("keeps no other record")
