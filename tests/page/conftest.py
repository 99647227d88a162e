"""A browser, and a server with the default model, for all tests of the page."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.page.window import DESKTOP, Open, Watch
from tests.programs import require
from tests.server.process import running

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Long, because a busy machine may load a model and read a prompt meanwhile.
PATIENCE_MS = 60_000


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = require("chromium", "google-chrome")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """A server process with the default model."""
    with running() as server:
        yield server.url


@pytest.fixture
def watches() -> Iterator[list[Watch]]:
    """The watches of the test's pages. A test removes the complaints that it expects; any other fails it."""
    opened: list[Watch] = []
    yield opened
    assert [complaint for watch in opened for complaint in watch.complaints] == []


@pytest.fixture
def opened(browser: Browser, watches: list[Watch]) -> Iterator[Open]:
    """Opens a server's page in a window of its own, which is closed after the test."""
    contexts = []

    def open_page(url: str, size: tuple[int, int] = DESKTOP, scheme: Any = "light", ready: bool = True) -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page, watch = context.new_page(), Watch(url)
        watches.append(watch)
        page.on("console", watch.console)
        page.on("pageerror", lambda error: watch.complaints.append(str(error)))
        page.on("request", watch.request)
        page.goto(f"{url}/")
        if ready:
            expect(page.locator("#model")).to_contain_text("context of")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="package")
def plain(browser: Browser, url: str) -> Iterator[Page]:
    """An empty document from which the page's modules can be imported."""
    page = browser.new_page()

    def blank(route: Route) -> None:
        route.fulfill(body="<!doctype html>", content_type="text/html")

    page.route(f"{url}/blank", blank)
    page.goto(f"{url}/blank")
    yield page
    page.close()
