"""A controller, echo workers and the page for every browser test, and a browser for each module of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.browser.desk import Desk
from tests.browser.pictures import make_examples
from tests.topology import Server, Topology

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 30_000

expect.set_options(timeout=WAIT_MS)

NewDesk = Callable[..., Desk]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """`quick` answers at once, `steady` can be watched, `slow` takes its time."""
    with Topology(tmp_path_factory.mktemp("servers")) as made:
        made.controller()
        made.worker("quick", delay_s=0.002, wait=False)
        made.worker("steady", delay_s=0.08, wait=False)
        made.worker("slow", delay_s=0.12, first_s=0.6, wait=False)
        for worker in made.servers[1:]:
            worker.until_ready("/health/ready", 60)
            made.until_listed(worker)
        yield made


@pytest.fixture(scope="session")
def page_server(servers: Topology, examples: Path) -> Server:
    return servers.page(extra=("--examples", str(examples)))


def find_browser() -> str | None:
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


# One module at a time: Playwright's loop must not be around while asynchronous tests of other folders run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def new_desk(browser: Browser, page_server: Server) -> Iterator[NewDesk]:
    """`new_desk(model="steady", tab="Compare", phone=True, dark=True, url=...)`: a person with a browser of their own.

    What the page's scripts complain about, and any request to elsewhere, fails the test.
    """
    contexts: list[BrowserContext] = []
    desks: list[Desk] = []

    def make(
        model: str = "quick",
        tab: str = "Chat",
        *,
        phone: bool = False,
        dark: bool = False,
        url: str = "",
        query: str = "",
        ready: bool = True,
    ) -> Desk:
        context = browser.new_context(
            viewport={"width": 390, "height": 844} if phone else {"width": 1280, "height": 800},
            has_touch=phone,
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        desk = Desk(context.new_page(), (url or page_server.url) + (query or f"/?model={model}"), tab)
        desks.append(desk)
        desk.open(ready=ready)
        return desk

    yield make
    complaints = [complaint for desk in desks for complaint in desk.complaints]
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    return new_desk()
