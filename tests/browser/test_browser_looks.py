"""How the page looks and what it leaves behind: phone and dark, files to keep, a bare page to embed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import NewDesk
from tests.browser.desk import Desk
from tests.browser.pictures import save
from tests.topology import Server


def brightness(page: Page, selector: str) -> float:
    """Of an element's background, 0 to 255."""
    colour = page.eval_on_selector(selector, "node => getComputedStyle(node).backgroundColor")
    red, green, blue = (int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


def contrast(page: Page, selector: str) -> float:
    """Of an element's text with the page's ground, as WCAG reckons it."""
    return page.eval_on_selector(
        selector,
        """node => {
            const light = (colour) => {
                const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
                    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
            };
            const one = light(getComputedStyle(node).color);
            const other = light(getComputedStyle(document.body).backgroundColor);
            return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        }""",
    )


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_everything_is_in_reach_without_scrolling_sideways(
    new_desk: NewDesk, tmp_path: Path, dark: bool
) -> None:
    desk = new_desk(phone=True, dark=dark)
    wide = "a" * 300 + "\n\n```text\n" + "x" * 300 + "\n```\n\n| " + "wide | " * 30 + "\n|" + "---|" * 30
    desk.ask(wide, save(tmp_path, "a.png", 640, 480))
    desk.button("Settings").click()
    expect(desk.page.locator(".ls-settings")).to_be_in_viewport()
    desk.page.keyboard.press("Escape")
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Add pictures", "Settings", "New chat", "Send"):
        expect(desk.button(name)).to_be_in_viewport()


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(new_desk: NewDesk, dark: bool) -> None:
    desk = new_desk(dark=dark)
    desk.ask("Hello")
    assert contrast(desk.page, ".ls-answer-text") > 10
    for selector in (".ls-figures", ".ls-picker-note", ".ls-foot", ".ls-model-tag"):
        assert contrast(desk.page, selector) > 4.5, selector


def test_the_page_is_dark_where_the_system_is_or_the_address_asks(new_desk: NewDesk) -> None:
    assert brightness(new_desk(dark=True).page, "body") < 60
    assert brightness(new_desk(query="/?__theme=dark").page, "body") < 60
    assert brightness(new_desk().page, "body") > 200


def test_the_choice_of_colours_is_remembered(desk: Desk) -> None:
    desk.page.get_by_role("button", name="Dark colours").click()
    assert brightness(desk.page, "body") < 60
    desk.page.reload()
    expect(desk.pickers).to_be_enabled()
    assert brightness(desk.page, "body") < 60
    desk.page.get_by_role("button", name="Light colours").click()
    assert brightness(desk.page, "body") > 200


def test_a_chat_is_exported_as_markdown_and_json(desk: Desk, tmp_path: Path) -> None:
    desk.ask("What is it?", save(tmp_path, "a.png", 64, 48))
    markdown = desk.download("Markdown")
    assert markdown.suggested_filename.endswith(".md")
    text = Path(markdown.path()).read_text()
    assert "What is it?" in text
    assert "![a.png][picture-1]" in text
    exported = desk.download("JSON")
    assert exported.suggested_filename.endswith(".json")
    document = json.loads(Path(exported.path()).read_text())
    assert [message["role"] for message in document["messages"]] == ["user", "assistant"]
    assert document["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_person_who_scrolled_up_is_left_there_and_can_come_back(new_desk: NewDesk) -> None:
    desk = new_desk("steady")
    desk.pick("quick")
    for _ in range(3):
        desk.ask("line\n\n" * 25)
    scroller = desk.view.locator(".ls-scroll")
    at_end = "node => node.scrollHeight - node.scrollTop - node.clientHeight < 60"
    assert scroller.evaluate(at_end)
    scroller.evaluate("node => { node.scrollTop = 0 }")
    expect(desk.button("To the latest answer")).to_be_visible()
    desk.button("To the latest answer").click()
    desk.page.wait_for_function(f"() => ({at_end})(document.querySelector('.ls-view-chat .ls-scroll'))")
    expect(desk.button("To the latest answer")).to_be_hidden()


def test_the_keyboard_alone_is_enough(desk: Desk) -> None:
    desk.input.focus()
    desk.page.keyboard.type("first")
    desk.page.keyboard.press("Shift+Enter")
    desk.page.keyboard.type("second")
    desk.page.keyboard.press("Enter")
    expect(desk.turns.last.locator(".ls-bubble")).to_have_text("first\nsecond")
    desk.wait_done()
    desk.pickers.focus()
    desk.page.keyboard.press("Enter")
    expect(desk.page.get_by_role("option").first).to_be_focused()
    desk.page.keyboard.press("ArrowDown")
    chosen = desk.page.locator(".ls-model:focus .ls-model-name").inner_text()
    desk.page.keyboard.press("Enter")
    expect(desk.pickers).to_be_focused()
    expect(desk.pickers).to_contain_text(chosen)


def test_the_server_tells_browsers_to_fetch_nothing_from_elsewhere(page_server: Server, desk: Desk) -> None:
    answer = desk.page.request.get(page_server.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "img-src 'self' data: blob:" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
