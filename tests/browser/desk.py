"""A person at the page: finds what they would look for, does what they would do, by what it says."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Download, Locator, Page, Request, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

# What browser and Gradio say when a page is left while it streams, or a server is stopped on purpose.
_EXPECTED = re.compile(
    r"Failed to load resource|AbortError|network error|Connection errored out|Failed to fetch|net::ERR_"
)


class Desk:
    """One browser page on one tab. `complaints` collects script errors and requests to other hosts."""

    def __init__(self, page: Page, url: str, tab: str) -> None:
        self.page = page
        self.url = url
        self.tab = tab
        self.complaints: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"script error: {error}"))
        page.on("request", self._request)

    def open(self, ready: bool = True) -> None:
        self.page.goto(self.url)
        if self.tab != "Chat":
            expect(self.page.locator(".ls-picker").first).to_be_visible()  # by then the tabs stand where they stay
            self.turn_to(self.tab)
        if ready:
            expect(self.pickers.first).to_be_enabled()

    # what is there ------------------------------------------------------------------------------------------

    @property
    def view(self) -> Locator:
        return self.page.locator(f".ls-view-{self.tab.lower()}")

    @property
    def pickers(self) -> Locator:
        return self.view.locator(".ls-picker")

    @property
    def input(self) -> Locator:
        return self.view.locator("textarea.ls-input")

    @property
    def turns(self) -> Locator:
        return self.view.locator(".ls-turn")

    @property
    def answer(self) -> Locator:
        """The text of the last answer."""
        return self.turns.last.locator(".ls-answer-text")

    @property
    def notice(self) -> Locator:
        return self.turns.last.locator(".ls-notice")

    @property
    def chips(self) -> Locator:
        return self.view.locator(".ls-chip")

    @property
    def send_button(self) -> Locator:
        return self.view.locator(".ls-send")

    @property
    def bar(self) -> Locator:
        return self.view.locator(".ls-bar")

    @property
    def toast(self) -> Locator:
        return self.page.locator(".ls-toast").last

    def button(self, name: str) -> Locator:
        return self.view.get_by_role("button", name=name, exact=True)

    def column(self, side: str) -> Column:
        return Column(self, side)

    # what is done -------------------------------------------------------------------------------------------

    def turn_to(self, tab: str) -> None:
        """On a phone the last tabs are behind a button."""
        self.tab = tab
        button = self.page.get_by_role("tab", name=tab, exact=True)
        more = self.page.get_by_role("button", name="More tabs")
        expect(button.or_(more).filter(visible=True).first).to_be_visible()
        try:
            # It may be seen for a moment before the page finds that there is no room for it.
            button.click(timeout=2_000)
        except PlaywrightTimeout:
            more.click()
            self.page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click()

    def ask(self, text: str, *files: Path, wait: bool = True) -> None:
        if files:
            self.attach(*files)
        self.input.fill(text)
        self.send_button.click()
        expect(self.input).to_have_value("")
        if wait:
            self.wait_done()

    def attach(self, *files: Path) -> None:
        self.view.locator(".ls-composer input[type=file]").set_input_files(list(files))

    def wait_done(self) -> None:
        expect(self.turns.last).to_have_attribute("data-state", re.compile("done|stopped|failed"))
        expect(self.send_button).to_have_attribute("aria-label", "Send")

    def wait_streaming(self) -> None:
        expect(self.turns.last).to_have_attribute("data-state", "streaming")
        expect(self.answer).not_to_be_empty()

    def reply(self) -> str:
        return self.answer.inner_text()

    def pick(self, model: str, place: int = 0) -> None:
        self.pickers.nth(place).click()
        self.page.get_by_role("option", name=model).click()

    def paste(self, name: str, mime: str, data: bytes) -> None:
        self._transfer("paste", [(name, mime, data)])

    def drop(self, *files: tuple[str, str, bytes]) -> None:
        self._transfer("drop", files)

    def download(self, kind: str) -> Download:
        self.button("Export this chat").first.click()
        with self.page.expect_download() as started:
            self.page.locator(".ls-menu").get_by_role("button", name=kind).click()
        return started.value

    def _transfer(self, event: str, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Files as the clipboard or a drag from the desktop brings them."""
        self.input.evaluate(
            """(input, [event, files]) => {
                const data = new DataTransfer();
                for (const [name, type, encoded] of files) {
                    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
                    data.items.add(new File([bytes], name, {type}));
                }
                const init = {bubbles: true, cancelable: true};
                if (event === "paste") input.dispatchEvent(new ClipboardEvent("paste", {...init, clipboardData: data}));
                else for (const step of ["dragenter", "dragover", "drop"])
                    input.dispatchEvent(new DragEvent(step, {...init, dataTransfer: data}));
            }""",
            [event, [(name, mime, base64.b64encode(data).decode()) for name, mime, data in files]],
        )

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not _EXPECTED.search(message.text):
            self.complaints.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname != "127.0.0.1":
            self.complaints.append(f"request to elsewhere: {request.url}")


class Column:
    """One of the columns of Compare or of the Arena."""

    def __init__(self, desk: Desk, side: str) -> None:
        self.pane = desk.view.locator(f".ls-pane[data-side={side}]")

    @property
    def turns(self) -> Locator:
        return self.pane.locator(".ls-turn")

    @property
    def last(self) -> Locator:
        return self.turns.last

    @property
    def answer(self) -> Locator:
        return self.last.locator(".ls-answer-text")

    @property
    def notices(self) -> Locator:
        return self.pane.locator(".ls-notice")

    def choose(self, what: str) -> None:
        """From the column's menu."""
        self.pane.get_by_role("button", name="What to do with this column").click()
        self.pane.page.get_by_role("button", name=what).click()

    @property
    def stop(self) -> Locator:
        return self.pane.get_by_role("button", name="Stop", exact=True)
