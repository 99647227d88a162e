"""What tests of the page see and do in a browser."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Request, expect

from tests.server.scripted import wait_until

ROOT = Path(__file__).parents[2]
# Each run of these tests replaces these pictures. docs/images has copies of page-light.png and page-dark.png.
SCREENSHOTS = ROOT / "screenshots"
COLOURS = 48
DESKTOP, PHONE = (1280, 900), (360, 780)

Open = Callable[..., Page]


class Watch:
    """Collects what must not happen on a page: warnings of the browser, and requests to other servers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.complaints: list[str] = []

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location['url'].removeprefix(self.url)})")

    def request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.complaints.append(f"request to {request.url}")


@contextmanager
def refused(page: Page, watches: list[Watch], status: int) -> Iterator[None]:
    """Expect one complaint: the browser reports each refused request by itself."""
    before = len(watches[-1].complaints)
    yield
    new = watches[-1].complaints[before:]
    assert len(new) == 1, new
    assert f"status of {status}" in new[0]
    del watches[-1].complaints[before:]


def pane(page: Page, name: str) -> Any:
    return page.get_by_role("region", name=f"Pane {name}")


def state(page: Page, name: str) -> Any:
    return pane(page, name).locator(".state")


def answer(page: Page, name: str) -> str:
    return str(pane(page, name).locator(".answer").text_content())


def sparsities(page: Page, a: float, b: float) -> None:
    page.get_by_label("Sparsity of A as a number").fill(str(a))
    page.get_by_label("Sparsity of B as a number").fill(str(b))


def choose(page: Page, kind: str, value: str, names: str = "AB") -> None:
    """Choose a Method, Mode or Drafts in each of these panes."""
    for name in names:
        page.get_by_label(f"{kind} of {name}").select_option(value)


def run(page: Page) -> None:
    page.get_by_role("button", name=re.compile("Run|Send")).click()


def until_running(url: str, count: int) -> None:
    """Wait until that many requests have a worker, which happens shortly after the page sends them."""
    running = f'griffin_num_requests_running{{model_name="scripted"}} {count}.0'
    wait_until(lambda: running in httpx.get(f"{url}/metrics").text)


def both_done(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("Done.")


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"page-{name}.png"
    page.screenshot(path=path, full_page=True)
    # This leaves a third of the bytes.
    Image.open(path).quantize(COLOURS).save(path, optimize=True)


def module(page: Page, name: str, script: str, argument: object = None) -> Any:
    """The result of a script that uses one of the page's modules ``m``. The page's own policy would forbid it."""
    return page.evaluate(f"async argument => {{ const m = await import('/page/{name}.js'); {script} }}", argument)
