"""The page with the results, also in a real browser."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from loadtest.arguments import parse
from loadtest.page import page
from loadtest.record import record
from loadtest.run import Run
from loadtest.sample import Sample
from loadtest.target import Target
from tests.loadtest.samples import sample
from tests.programs import require

EVIL = "<script>document.title='gone'</script>"


def made(samples: list[Sample], *arguments: str, model: str = "tiny") -> str:
    asked = parse(["--objective", "ttft=250", *arguments])
    target = Target("http://host", "completions", model)
    run = Run(target, samples, datetime(2026, 1, 1, tzinfo=UTC), 8.0, 0.1, None, None, False)
    return page(record(run, asked), samples)


def some() -> list[Sample]:
    failed = sample(sparsity=0.0, error="HTTP 500 engine_failed", message=EVIL)
    return [sample(sparsity=s, end_s=1.7 + i / 10) for i in range(6) for s in (0.0, 0.5)] + [failed]


class Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]


def test_texts_from_outside_are_escaped() -> None:
    """The server's name and messages and the command are escaped."""
    text = made(some(), "--body", f'{{"user": "{EVIL}"}}', model=EVIL)

    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 3


def test_plots_do_not_share_ids() -> None:
    """One document has five plots."""
    text, found = made(some()), Ids()
    found.feed(text)

    assert text.count("<svg ") == 5
    assert len(found.ids) == len(set(found.ids)) > 100


def test_a_run_without_answers_has_a_page() -> None:
    """It has no plots without values."""
    text = made([sample(sparsity=0.0, error="timeout", text_s=())])

    assert "timeout" in text
    assert text.count("<svg ") == 1


def test_in_a_browser(tmp_path: Path) -> None:
    """The page loads and logs nothing; text in plots is light in dark mode; a phone needs no sideways scrolling."""
    chromium = require("chromium")
    from playwright.sync_api import sync_playwright

    (tmp_path / "a.html").write_text(made(some()))
    said: list[str] = []
    asked: list[Any] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        phone = browser.new_page(color_scheme="dark", viewport={"width": 380, "height": 800})
        phone.on("console", lambda message: said.append(message.text))
        phone.on("pageerror", lambda error: said.append(str(error)))
        phone.on("request", lambda request: asked.append(request.url))
        phone.goto((tmp_path / "a.html").as_uri())
        colour = phone.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        width = phone.evaluate("document.documentElement.scrollWidth")
        browser.close()

    assert said == []
    assert asked == [(tmp_path / "a.html").as_uri()]
    assert colour == "rgb(230, 237, 243)"
    assert width == 380
