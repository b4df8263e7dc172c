"""Takes the README's pictures of the page: real servers, echo models, the examples of this repository.

python -m tests.browser.screenshots [FOLDER]        # writes static/screenshot-*.png
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.conftest import find_browser
from tests.browser.desk import Desk
from tests.topology import Server, Topology

STATIC = Path(__file__).resolve().parent.parent.parent / "static"
DESKTOP, PHONE = (1280, 800), (390, 844)


def main(folder: Path = STATIC) -> None:
    with tempfile.TemporaryDirectory() as logs, Topology(Path(logs)) as servers, sync_playwright() as playwright:
        servers.controller()
        servers.worker("echo", delay_s=0.02)
        servers.worker("echo-slow", delay_s=0.25)
        page = servers.page()
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        welcome = _open(browser, page, DESKTOP)
        _save(welcome, folder / "screenshot-welcome.png")
        _save(_chat(_open(browser, page, DESKTOP)), folder / "screenshot-chat.png")
        _save(_compare(_open(browser, page, DESKTOP, tab="Compare")), folder / "screenshot-compare.png")
        _save(_chat(_open(browser, page, PHONE, dark=True)), folder / "screenshot-phone.png")
        browser.close()


def _open(browser: Browser, page: Server, size: tuple[int, int], tab: str = "Chat", dark: bool = False) -> Desk:
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=size == PHONE
    )
    desk = Desk(context.new_page(), f"{page.url}/?model=echo", tab)
    desk.open()
    _wait_for_pictures(desk)
    return desk


def _chat(desk: Desk) -> Desk:
    desk.view.locator(".ls-example").first.click()
    desk.send_button.click()
    desk.wait_done()
    _wait_for_pictures(desk)
    return desk


def _compare(desk: Desk) -> Desk:
    desk.pick("echo-slow", place=1)
    desk.view.locator(".ls-strip-item").nth(1).click()
    desk.send_button.click()
    expect(desk.column("left").last).to_have_attribute("data-state", "done")
    expect(desk.column("right").answer.locator("li")).to_have_count(1)
    _wait_for_pictures(desk)
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
