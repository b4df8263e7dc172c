"""Takes the README's pictures of the page: real servers, the built-in model before and after its second stage.

python -m tests.browser.screenshots [FOLDER]        # writes static/screenshot-*.png
"""

from __future__ import annotations

import io
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from rich.console import Console

from serve.launcher.default import default_models
from serve.store.battles import save_battle
from serve.store.database import Database
from tests.arena.voted import battle
from tests.browser.conftest import find_browser
from tests.browser.desk import Desk
from tests.topology import Server, Topology

STATIC = Path(__file__).resolve().parent.parent.parent / "static"
DESKTOP, PHONE = (1280, 800), (390, 844)
SHAPES, QUESTION = 1, "What shapes and colours are in this picture?"
LOADED_WITHIN_S = 600.0
ANSWERED_WITHIN_MS = 300_000


def main(folder: Path = STATIC) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as logs, Topology(Path(logs)) as servers, sync_playwright() as playwright:
        servers.controller()
        # As the launcher does with two models on two cores: more threads than cores wait for each other.
        own = ("--threads", "1")
        workers = [
            servers.worker(spec.name or "", model_path=spec.path, wait=False, extra=own)
            for spec in default_models(Console())
        ]
        for worker in workers:
            worker.until_ready("/health/ready", LOADED_WITHIN_S)
            servers.until_listed(worker, timeout_s=LOADED_WITHIN_S)
        votes = f"sqlite:///{logs}/votes.db"
        _invent_votes(votes)
        page = servers.page(extra=("--database-url", votes))
        expect.set_options(timeout=ANSWERED_WITHIN_MS)
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        _save(_open(browser, page, DESKTOP), folder / "screenshot-welcome.png")
        _save(_chat(_open(browser, page, DESKTOP)), folder / "screenshot-chat.png")
        _save(_compare(_open(browser, page, DESKTOP, tab="Compare")), folder / "screenshot-compare.png")
        _save(_arena(_open(browser, page, DESKTOP, tab="Arena", dark=True)), folder / "screenshot-arena.png")
        _save(_board(_open(browser, page, DESKTOP, tab="Leaderboard")), folder / "screenshot-leaderboard.png")
        _save(_chat(_open(browser, page, PHONE, dark=True)), folder / "screenshot-phone.png")
        _save(_inspect(_open(browser, page, DESKTOP, tab="Inspect")), folder / "screenshot-inspect.png")
        asking = _open(browser, page, DESKTOP)
        _save(_status(_open(browser, page, DESKTOP, tab="Status"), asking), folder / "screenshot-status.png")
        browser.close()


def _open(browser: Browser, page: Server, size: tuple[int, int], tab: str = "Chat", dark: bool = False) -> Desk:
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=size == PHONE
    )
    context.set_default_timeout(ANSWERED_WITHIN_MS)
    desk = Desk(context.new_page(), f"{page.url}/?model=builtin", tab)
    desk.open(ready=tab in ("Chat", "Compare"))
    _wait_for_pictures(desk)
    return desk


def _chat(desk: Desk) -> Desk:
    desk.view.locator(".ls-example").nth(SHAPES).click()
    desk.input.fill(QUESTION)
    desk.send_button.click()
    desk.wait_done()
    _wait_for_pictures(desk)
    return desk


def _compare(desk: Desk) -> Desk:
    desk.view.locator(".ls-strip-item").nth(SHAPES).click()
    desk.input.fill(QUESTION)
    desk.send_button.click()
    for side in ("a", "b"):
        expect(desk.column(side).last).to_have_attribute("data-state", "done")
    desk.view.get_by_role("switch", name="Differences").click()
    expect(desk.column("b").pane.locator(".ls-differs")).to_be_visible()
    _wait_for_pictures(desk)
    return desk


def _arena(desk: Desk) -> Desk:
    desk.view.locator(".ls-strip-item").nth(SHAPES).click()
    desk.input.fill(QUESTION)
    desk.send_button.click()
    expect(desk.view.locator(".ls-ballot")).to_have_attribute("data-state", "ready")
    left, right = (len(desk.column(side).answer.inner_text()) for side in ("left", "right"))
    desk.button("A is better" if left < right else "B is better").click()  # the first stage alone runs on and on
    expect(desk.view.locator(".ls-ballot")).to_have_attribute("data-state", "told")
    _wait_for_pictures(desk)
    return desk


def _board(desk: Desk) -> Desk:
    expect(desk.view.locator("svg .ls-dot").first).to_be_visible()
    _wait_for_pictures(desk)
    return desk


def _invent_votes(url: str) -> None:
    """So that the Leaderboard has something to show: five models of which later ones mostly win."""
    names, chance, now = ("builtin-stage1", "builtin", "ant-7b", "bee-13b", "cow-34b"), Random(7), datetime.now(UTC)
    database = Database(url)
    database.open()
    with database.writing() as connection:
        for number in range(240):
            weak, strong = sorted(chance.sample(range(len(names)), 2))
            won = chance.random() < 0.5 + 0.09 * (strong - weak)
            verdict = "tie" if chance.random() < 0.12 else "b" if won else "a"
            category = ("picture",) if number % 3 else ("text",)
            made = battle(number, names[weak], names[strong], verdict, voted_at=now, categories=category)
            save_battle(connection, made)
    database.close()


def _inspect(desk: Desk) -> Desk:
    desk.view.locator(".ls-inspect-strip [data-example]").nth(SHAPES).click()
    expect(desk.view.locator(".ls-inspect-prompt")).to_be_visible(timeout=60_000)
    desk.view.locator(".ls-inspect-ask").click()
    expect(desk.view.locator(".ls-inspect-bars")).to_be_visible(timeout=60_000)
    return desk


def _status(desk: Desk, asking: Desk) -> Desk:
    """After some minutes in which there was something to tell, and while there is."""
    expect(desk.page.locator(".ls-status-table tbody tr").first).to_be_visible()
    for _ in range(12):
        _chat(asking)
        asking.page.wait_for_timeout(5000)
        asking.button("New chat").click()
    asking.input.fill("Write a long story about a lighthouse.")
    asking.send_button.click()
    expect(desk.page.locator(".ls-status-table")).to_contain_text("1 of")
    desk.page.wait_for_timeout(3000)
    return desk


def _wait_for_pictures(desk: Desk) -> None:
    desk.page.wait_for_function(
        """() => document.fonts.status === "loaded" && [...document.images].every((image) => {
            const {top, height} = image.getBoundingClientRect();
            return image.complete || !height || top > innerHeight;
        })"""
    )
    desk.page.mouse.move(5, 400)
    desk.page.wait_for_timeout(400)  # for what fades in


def _save(desk: Desk, path: Path) -> None:
    shot = Image.open(io.BytesIO(desk.page.screenshot())).convert("RGB")
    # With k-means, so that a small mark in a colour of its own keeps it.
    shot.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1024} KB")
    desk.page.context.close()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
