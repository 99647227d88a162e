"""The page in a real browser with real servers: typing, running, stopping, and errors."""

import re
import threading

import httpx
import pytest
from playwright.sync_api import expect

from server.loader import Loaded
from tests.page.window import (
    DESKTOP,
    PHONE,
    ROOT,
    Open,
    Watch,
    answer,
    both_done,
    choose,
    fits,
    pane,
    refused,
    run,
    shoot,
    state,
    until_running,
)
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served, wait_until


def test_an_impossible_request_is_a_sentence(opened: Open, url: str, watches: list[Watch]) -> None:
    """The server's message stands once in the place of the answer; the other pane does not start."""
    page = opened(url)
    page.get_by_label("Prompt", exact=True).fill("snow " * 9_000)
    with refused(page, watches, 400):
        run(page)
        expect(pane(page, "A").get_by_role("alert")).to_contain_text(
            "The server refused this: this model's context is 8192"
        )
    expect(state(page, "A")).to_have_text("Failed.")
    expect(state(page, "B")).to_have_text("Not started.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_both_schemes(opened: Open, url: str, scheme: str) -> None:
    """The page fits 360 px before and after a run; text and accent have enough contrast (WCAG AA)."""
    page = opened(url, PHONE, scheme)
    assert fits(page)
    page.get_by_label("Most tokens").fill("8")
    choose(page, "Method", "griffin", "B")
    choose(page, "Mode", "lossless", "A")
    assert fits(page)
    run(page)
    both_done(page)
    expect(pane(page, "B").locator("canvas")).to_be_visible()
    assert fits(page)
    shoot(page, f"phone-{scheme}")

    for selector in ("body", ".lead", "#run", ".state", "mark", ".counts", ".explained", "#agreement", "footer a"):
        colours = page.locator(selector).first.evaluate(COLOURS)
        assert contrast(*colours) >= 4.5, (selector, colours)
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    shoot(page, f"desktop-{scheme}")


# The colour of an element, and the first background colour behind it.
COLOURS = """element => {
  const rgb = text => text.match(/[0-9.]+/g).map(Number);
  let ground = element;
  while (rgb(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  return [rgb(getComputedStyle(element).color), rgb(getComputedStyle(ground).backgroundColor)];
}"""


def contrast(ink: list[float], ground: list[float]) -> float:
    """The contrast by WCAG of two colours, as red, green and blue from 0 to 255."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour[:3])]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(ink), luminance(ground)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_stop_in_the_middle(opened: Open) -> None:
    """The text so far stays, the waiting pane does not start, and the server stops, too."""
    with served(engine := ScriptedEngine(step_s=0.01)) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("500")
        run(page)
        expect(state(page, "A")).to_contain_text("Generating")
        wait_until(lambda: len(answer(page, "A")) > 3)
        page.get_by_role("button", name="Stop").click()
        expect(state(page, "A")).to_contain_text(re.compile(r"Stopped after \d+ tokens\."))
        expect(state(page, "B")).to_have_text("Not started.")
        expect(page.get_by_role("button", name="Run")).to_be_focused()
        wait_until(lambda: engine.ended)

        # The page's seed is 1, with which the script begins at its second letter.
        assert answer(page, "A").startswith("bcd")
        assert engine.generated < 500
        assert len(engine.reads) == 1


def test_all_by_keyboard(opened: Open) -> None:
    """Tab reaches every control in reading order; arrows set the sparsity; Ctrl+Enter runs, Escape stops."""
    engines = [ScriptedEngine(step_s=0.01) for _ in range(2)]
    with served(*engines, workers=2) as url:
        page = opened(url)
        names = []
        focused = "(e => e.ariaLabel || e.labels?.[0]?.innerText.trim() || e.innerText)(document.activeElement)"
        for _ in range(21):
            page.keyboard.press("Tab")
            names.append(page.evaluate(focused).splitlines()[0].strip())
        assert names == [
            "Example", "Prompt", "completion", "Most tokens", "Temperature", "Repetition penalty", "Seed",
            "two panes", "measure how close answers are to the full model\u2019s",
            "both at once, on a worker each", "Run Ctrl Enter",
            "Sparsity of A", "Sparsity of A as a number", "Mode of A", "Drafts of A", "Answer A",
            "Sparsity of B", "Sparsity of B as a number", "Method of B", "Mode of B", "Drafts of B",
        ]  # fmt: skip
        for _ in range(4):
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("ArrowRight")
        expect(page.get_by_label("Sparsity of B as a number")).to_have_value("0.55")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"

        page.get_by_label("Most tokens").fill("500")
        page.get_by_label("Prompt", exact=True).focus()
        page.keyboard.press("Control+Enter")
        expect(state(page, "A")).to_contain_text("Generating")
        page.keyboard.press("Control+Enter")
        page.keyboard.press("Escape")
        expect(state(page, "A")).to_contain_text("Stopped after")
        assert sum(len(engine.reads) for engine in engines) == 1


def test_markup_of_a_model_stays_text(opened: Open) -> None:
    """Answers are shown as they are, also where words are marked; no markup takes effect."""
    gate = threading.Event()
    # The page's seed is 1, with which a script begins at its second letter.
    written = {" <b>x</b>": "<b>x</b> ", " <i>y</i>": "<i>y</i> "}
    with served(*(ScriptedEngine(text=text, gate=gate) for text in written), workers=2) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("9")
        page.get_by_label("both at once").check()
        run(page)
        expect(state(page, "B")).to_have_text("Reading the prompt …")
        until_running(url, 2)
        gate.set()
        both_done(page)

        assert {answer(page, name) for name in "AB"} == set(written.values())
        assert {mark.text_content() for mark in page.locator("mark").all()} == {"<b>x</b>", "<i>y</i>"}
        assert page.locator(".answer b, .answer i").count() == 0


def test_an_error_inside_a_stream(opened: Open) -> None:
    """The status was 200: the text so far stays, and a sentence says that the answer broke off."""
    with served(ScriptedEngine(fail_after=5)) as url:
        page = opened(url)
        run(page)
        expect(pane(page, "A").get_by_role("alert")).to_contain_text("The answer broke off: the request failed inside")
        expect(state(page, "A")).to_have_text("Failed after 5 tokens.")


def test_a_busy_server(opened: Open, watches: list[Watch]) -> None:
    """For a full queue a sentence says when to try again."""
    gate = threading.Event()
    with served(ScriptedEngine(gate=gate), queue_size=0) as url:
        page = opened(url)
        other = threading.Thread(target=httpx.post, args=(f"{url}/v1/completions",), kwargs={"json": {"prompt": "a"}})
        other.start()
        until_running(url, 1)
        with refused(page, watches, 429):
            run(page)
            expect(pane(page, "A").get_by_role("alert")).to_have_text(
                re.compile(r"The server is busy, and its queue is full. Try again in \d+ seconds?.")
            )
        gate.set()
        other.join()


def test_a_server_that_is_gone(opened: Open, watches: list[Watch]) -> None:
    """A sentence says that the server cannot be reached."""
    with served(ScriptedEngine()) as url:
        page = opened(url)
    run(page)
    expect(pane(page, "A").get_by_role("alert")).to_have_text(
        "The server cannot be reached. See whether it still runs, then try again."
    )
    assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in watches[-1].complaints)
    watches[-1].complaints.clear()


def test_a_key(opened: Open, watches: list[Watch]) -> None:
    """The page loads without a key, asks for one, sends it, and keeps it only for this tab."""
    with served(ScriptedEngine(), api_keys="secret") as url:
        page = opened(url, ready=False)
        expect(page.locator("#model")).to_have_text("Enter an API key to begin.")
        with refused(page, watches, 401):
            page.get_by_label("API key").fill("wrong")
            page.keyboard.press("Tab")
            expect(page.locator("#trouble")).to_contain_text("This server does not know this API key")
        page.get_by_label("API key").fill("schl\u00fcssel \u2013")
        page.keyboard.press("Tab")
        expect(page.locator("#trouble")).to_contain_text("holds a character that a browser cannot send")
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Tab")
        expect(page.locator("#model")).to_contain_text("context of")
        expect(page.locator("#trouble")).to_be_hidden()
        run(page)
        both_done(page)
        page.reload()
        expect(page.locator("#model")).to_contain_text("context of")
        assert page.evaluate("localStorage.length") == 0


def test_a_model_that_still_loads(opened: Open) -> None:
    """The page waits without an error and goes on by itself."""
    gate = threading.Event()

    def loader(settings: object) -> Loaded:
        gate.wait(30)
        return Loaded("late", CharacterTokenizer(), [ScriptedEngine()])

    with served(loader=loader) as url:
        page = opened(url, ready=False)
        expect(page.locator("#model")).to_contain_text("Not ready: the model is still loading")
        gate.set()
        expect(page.locator("#model")).to_contain_text("late, ")


def test_what_is_served() -> None:
    """A fixed set of files with type, policy and ETag, which the API's document does not list."""
    with served(ScriptedEngine()) as url:
        index = httpx.get(f"{url}/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        for name in sorted(set(re.findall(r'(?:src|href)="(page/[^"]+)"', index.text))):
            asset = httpx.get(f"{url}/{name}")
            assert asset.status_code == 200
            assert asset.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
            assert asset.headers["x-content-type-options"] == "nosniff"
            again = httpx.get(f"{url}/{name}", headers={"If-None-Match": f'"other", W/{asset.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
        assert "javascript" in httpx.get(f"{url}/page/page.js").headers["content-type"]
        head = httpx.head(f"{url}/")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(index.content))
        for path in (
            "page/none.js",
            "page/",
            "page/..%2fapp.py",
            "page/%2e%2e/app.py",
            "page/../app.py",
            "page/__init__.py",
        ):
            missing = httpx.get(httpx.URL(url, raw_path=f"/{path}".encode()))
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "not_found"
        assert [path for path in httpx.get(f"{url}/openapi.json").json()["paths"] if path.startswith("/page")] == []


def test_no_inline_code_and_no_other_servers() -> None:
    """The files have no inline code, and the only address outside is a link for readers."""
    folder = ROOT / "server" / "page"
    index = (folder / "index.html").read_text()

    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", index) == []
    addresses = {
        address for file in folder.iterdir() for address in re.findall(r"https?://[^\"' )]+", file.read_text())
    }
    assert addresses == {"https://arxiv.org/abs/2404.01365", "http://www.w3.org/2000/svg"}


def test_the_page_can_be_off() -> None:
    """Then / is a 404, or a 401 if the server needs a key."""
    with served(ScriptedEngine(), page=False) as url:
        assert httpx.get(f"{url}/").status_code == 404
        assert httpx.get(f"{url}/page/page.js").status_code == 404
    with served(ScriptedEngine(), page=False, api_keys="key") as url:
        assert httpx.get(f"{url}/").status_code == 401


def test_the_page_needs_no_key() -> None:
    """Its files need none; all other paths do, even those that do not exist."""
    with served(ScriptedEngine(), api_keys="key") as url:
        for path in ("", "page/page.js", "page/state"):
            assert httpx.get(f"{url}/{path}").status_code == 200
        for path in ("page/none.js", "v1/models", "v1/griffin/experts/cafe"):
            assert httpx.get(f"{url}/{path}").status_code == 401
