"""Who sees little or uses no mouse: axe-core on every tab in both colours, and what the keyboard reaches."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import NewDesk
from tests.browser.desk import Desk

ANSWER = """# Two animals

- a **cat**
- a [dog](https://example.org)

| a | b |
|---|---|
| 1 | 2 |

```python
x = 1
```"""


def violations(desk: Desk) -> list[str]:
    """What axe finds serious or critical: the rule, and where."""
    # What fades in has not its own colours yet.
    desk.page.wait_for_function(
        "() => document.getAnimations().every((each) => each.playState !== 'running' "
        "|| each.effect.getTiming().iterations === Infinity)"
    )
    found = Axe().run(desk.page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]} | {node['failureSummary'][:300]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_no_tab_has_a_serious_violation(new_desk: NewDesk, dark: bool) -> None:
    desk = new_desk(dark=dark)
    found: dict[str, list[str]] = {}
    for title in desk.page.get_by_role("tab").all_inner_texts():
        desk.turn_to(title)
        expect(desk.view).to_be_visible()
        found[f"{title}, empty"] = violations(desk)
        if title in ("Chat", "Compare", "Arena"):
            desk.ask(ANSWER)
            if title == "Compare":
                desk.view.locator(".ls-vote").first.click()
                expect(desk.view).to_contain_text("Your vote counts.")
            found[title] = violations(desk)
    assert {title: rules for title, rules in found.items() if rules} == {}


@pytest.mark.parametrize("dark", [False, True])
def test_what_opens_over_the_page_has_no_serious_violation(new_desk: NewDesk, dark: bool) -> None:
    desk = new_desk(tab="Compare", dark=dark, phone=dark)
    desk.ask(ANSWER)
    found: dict[str, list[str]] = {"columns": violations(desk)}
    openers = {
        "models": desk.pickers.first,
        "settings": desk.button("Settings"),
        "kept": desk.button("What is kept?"),
        "menu": desk.column("a").pane.get_by_role("button", name="What to do with this column"),
    }
    for name, opener in openers.items():
        opener.click()
        expect(desk.page.get_by_role("dialog")).to_be_visible()
        found[name] = violations(desk)
        desk.page.keyboard.press("Escape")
        expect(opener).to_be_focused()
    assert {name: rules for name, rules in found.items() if rules} == {}


def test_the_keyboard_alone_adds_a_column_asks_votes_and_closes_it(new_desk: NewDesk) -> None:
    desk = new_desk(tab="Compare")
    keyboard = desk.page.keyboard

    def go_to(name: str) -> None:
        """By Tab alone, from wherever the focus is."""
        focused = "document.activeElement?.getAttribute('aria-label') ?? document.activeElement?.textContent"
        for _ in range(60):
            label = desk.page.evaluate(focused)
            if re.fullmatch(name, (label or "").strip()):
                return
            keyboard.press("Tab")
        raise AssertionError(f"Tab never comes to {name}")

    go_to("Add a model")
    keyboard.press("Enter")
    expect(desk.column("c").pane.locator(".ls-picker")).to_be_focused()
    go_to("Your question")
    keyboard.type("Hello")
    keyboard.press("Enter")
    for side in "abc":
        expect(desk.column(side).last).to_have_attribute("data-state", "done")
    expect(desk.view.locator(".ls-spoken")).to_contain_text("has answered")
    go_to("B is best: .*")
    keyboard.press("Enter")
    expect(desk.view).to_contain_text("Your vote counts.")
    go_to("What to do with this column")
    keyboard.press("Enter")
    go_to("Settings of this column")
    keyboard.press("Escape")
    expect(desk.column("a").pane.get_by_role("button", name="What to do with this column")).to_be_focused()
