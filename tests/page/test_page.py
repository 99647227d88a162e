"""The page in a real browser, against real servers: what somebody sees who types, runs, compares and stops."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from server.loader import Loaded
from tests.programs import require
from tests.server.process import running
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served, wait_until

ROOT = Path(__file__).parents[2]
# Of each run of these tests; nobody keeps them in the repository.
SCREENSHOTS = ROOT / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = (1280, 900), (360, 780)
# Generous: a busy machine loads a model and reads a prompt meanwhile.
PATIENCE_MS = 30_000

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = require("chromium", "google-chrome")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server process with the default model."""
    with running() as server:
        yield server.url


class Watch:
    """What must not happen while a page is open: complaints of the browser, requests to anybody else."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.complaints: list[str] = []

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location['url'].removeprefix(self.url)})")

    def request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.complaints.append(f"request to {request.url}")


@pytest.fixture
def watches() -> Iterator[list[Watch]]:
    """Those of the test's pages; what a test expects it takes out, and all else is a failure."""
    opened: list[Watch] = []
    yield opened
    assert [complaint for watch in opened for complaint in watch.complaints] == []


@pytest.fixture
def opened(browser: Browser, watches: list[Watch]) -> Iterator[Open]:
    """Opens the page of a server in a window of its own, closed after the test."""
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


@contextmanager
def refused(page: Page, watches: list[Watch], status: int) -> Iterator[None]:
    """The browser itself reports a refused request, as it reports all of them; once, and nothing else."""
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
    return str(page.get_by_role("region", name=f"Answer {name}").text_content())


def sparsities(page: Page, a: float, b: float) -> None:
    page.get_by_label("Sparsity of A as a number").fill(str(a))
    page.get_by_label("Sparsity of B as a number").fill(str(b))


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()


def until_running(url: str, count: int) -> None:
    """Wait until so many requests have a worker: a page asks a moment before the server has it."""
    running = f'griffin_num_requests_running{{model_name="scripted"}} {count}.0'
    wait_until(lambda: running in httpx.get(f"{url}/metrics").text)


def both_done(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("Done.")


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"page-{name}.png", full_page=True)


def test_the_same_request_at_two_sparsities(opened: Open, url: str) -> None:
    """A quarter and a half by the default method: answers and figures are the API's own, differing words are marked."""
    page = opened(url)
    prompt = (
        "The lighthouse keeper had lived alone on the island for eleven years. One morning, after a storm, he found"
    )
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Most tokens").fill("24")
    expect(page.get_by_label("Method")).to_have_value("griffin+")
    run(page)
    both_done(page)

    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "seed": 1, "repetition_penalty": 1.1}
    whole = httpx.get(f"{url}/v1/models").json()["data"][0]["bytes_per_token"]["total"]
    for name, sparsity in (("A", 0.25), ("B", 0.5)):
        given = httpx.post(f"{url}/v1/completions", json={**body, "sparsity": sparsity}, timeout=60).json()
        report = given["griffin"]
        assert answer(page, name) == given["choices"][0]["text"]
        read, active = report["bytes_per_token"], report["active_parameters"]
        expect(pane(page, name).locator(".counts")).to_have_text(
            f"{read / 1e6:.0f} MB a token ({100 - round(100 * read / whole)} % fewer), "
            f"{active / 1e6:.1f} M of 134.5 M parameters"
        )
        gate, up, down = (f"{100 * share:.0f} %" for share in report["shares_read"].values())
        expect(pane(page, name).locator("figcaption")).to_have_text(
            f"Each token picked the weights that it read: on average {gate} of the gate, {up} of the up and {down} of "
            "the down matrix."
        )
        expect(state(page, name)).to_have_text(f"Done at sparsity {sparsity}: 24 tokens, as many as allowed.")
        assert float(pane(page, name).locator(".rate").inner_text()) > 0
        expect(pane(page, name).locator(".rate-server")).to_have_text(re.compile(r"server: [\d.]+"))
        expect(pane(page, name).locator(".first-server")).to_have_text(re.compile(r"server: \d+ ms"))
        expect(pane(page, name).locator(".usage")).to_contain_text("prompt tokens were read")
        assert pane(page, name).locator("mark").count() > 0
    expect(page.locator("#agreement")).to_have_text(
        re.compile(r"First difference at word \d+; \d+ % of the words agree.")
    )
    shoot(page, "light")
    page.emulate_media(color_scheme="dark")
    shoot(page, "dark")


def test_two_sets_of_neurons_are_compared(opened: Open, url: str) -> None:
    """Smaller sets of the same prompt lie within larger ones; layers can be walked through; a chat is possible."""
    page = opened(url)
    page.get_by_label("Method").select_option("griffin")
    page.get_by_label("Example").select_option("Why leaves turn red")
    expect(page.get_by_label("chat")).to_be_checked()
    page.get_by_label("Most tokens").fill("24")
    run(page)
    both_done(page)

    a, b = (pane(page, name).locator("figure") for name in "AB")
    expect(a.locator("figcaption")).to_contain_text(
        "67 % of them, drawn darker, are kept in B too (Jaccard index 0.67)"
    )
    expect(b.locator("figcaption")).to_contain_text("100 % of them, drawn darker, are kept in A too")
    shoot(page, "neurons")
    a.get_by_role("img").focus()
    expect(a.locator(".layer")).to_have_text("Layer 0: 1152 of 1536 kept, 67 % of them in B too.")
    page.keyboard.press("End")
    expect(a.locator(".layer")).to_contain_text("Layer 29:")
    drawn = [figure.locator("canvas").evaluate(INK) for figure in (a, b)]
    assert drawn[0] > drawn[1] > 0

    page.get_by_label("Example").select_option("A letter to the landlord")
    page.get_by_label("Most tokens").fill("3")
    run(page)
    both_done(page)
    expect(b.locator("figcaption")).to_contain_text(
        "were kept for the prompt before too; chosen blindly it would be 50 %."
    )


# Of a canvas: how many of its points are not empty.
INK = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, i) => i % 4 === 3 && value > 0).length;
}"""


def test_a_prompt_that_is_known_says_so(opened: Open, url: str) -> None:
    """The second reading is cheaper, so its first token cannot be compared: the page tells. The first is the full
    model's."""
    page = opened(url)
    page.get_by_label("Prompt", exact=True).fill("word " * 400)
    page.get_by_label("Most tokens").fill("2")
    sparsities(page, 0, 0.5)
    run(page)
    both_done(page)

    expect(pane(page, "A").locator("figcaption")).to_have_text("All 46,080 neurons were used.")
    expect(pane(page, "A").locator(".counts")).to_have_text(
        "97 MB a token (the full model), 134.5 M of 134.5 M parameters"
    )
    expect(pane(page, "B").locator(".usage")).to_have_text(
        re.compile(r"256 of 40\d prompt tokens were known already, which brought the first token sooner.")
    )


def test_drafts_are_counted_and_can_be_left_out(opened: Open) -> None:
    """Only where something was drafted. Nothing else is asked for."""
    with served(engine := ScriptedEngine(drafts=True)) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("9")
        for choice, drafted in (("automatic", "6 of 8 drafted tokens stayed."), ("none", None)):
            page.get_by_label("Drafts").select_option(choice)
            run(page)
            both_done(page)
            for name in "AB":
                usage = pane(page, name).locator(".usage")
                expect(usage).to_contain_text(drafted or "prompt tokens were read.")
                assert ("drafted" in usage.inner_text()) == bool(drafted)

    assert [verification.source for _, verification in engine.asked] == ["ngram", "ngram", "none", "none"]


@pytest.mark.parametrize(("flags", "value"), [({"draft": "none"}, "none"), ({"mode": "guarded"}, "ngram")])
def test_the_servers_own_drafts_are_the_first_choice(opened: Open, flags: dict[str, Any], value: str) -> None:
    """In a mode that drafts in its own way there is none to make, and nothing is asked for."""
    with served(engine := ScriptedEngine(), **flags) as url:
        page = opened(url)
        drafts = page.get_by_label("Drafts")
        expect(drafts).to_have_value(value)
        assert drafts.is_disabled() == ("mode" in flags)
        page.get_by_label("Most tokens").fill("8")
        run(page)
        both_done(page)

    assert [verification.draft for _, verification in engine.asked] == [flags.get("draft")] * 2


def test_an_impossible_request_is_a_sentence(opened: Open, url: str, watches: list[Watch]) -> None:
    """The server's own words, once, where the answer would have been; the other pane is not tried."""
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
    """Nothing is wider than 360 px, before and after a run; text and accent stand out from the ground (WCAG AA)."""
    page = opened(url, PHONE, scheme)
    assert fits(page)
    page.get_by_label("Most tokens").fill("8")
    page.get_by_label("Method").select_option("griffin")
    run(page)
    both_done(page)
    expect(pane(page, "B").locator("canvas")).to_be_visible()
    assert fits(page)
    shoot(page, f"phone-{scheme}")

    for selector in ("body", ".lead", "#run", ".state", "mark", ".counts", "footer a"):
        colours = page.locator(selector).first.evaluate(COLOURS)
        assert contrast(*colours) >= 4.5, (selector, colours)
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    shoot(page, f"desktop-{scheme}")


# Of an element: its colour, and that of the first ground behind it.
COLOURS = """element => {
  const rgb = text => text.match(/[0-9.]+/g).map(Number);
  let ground = element;
  while (rgb(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  return [rgb(getComputedStyle(element).color), rgb(getComputedStyle(ground).backgroundColor)];
}"""


def contrast(ink: list[float], ground: list[float]) -> float:
    """WCAG's, of two colours as red, green, blue from 0 to 255."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour[:3])]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(ink), luminance(ground)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_stop_in_the_middle(opened: Open) -> None:
    """What has come stays, the pane that waited is not started, and the server ends its work too."""
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
        focused = "(e => e.labels?.[0]?.innerText.trim() || e.ariaLabel || e.innerText)(document.activeElement)"
        for _ in range(15):
            page.keyboard.press("Tab")
            names.append(page.evaluate(focused).splitlines()[0].strip())
        assert names == [
            "Example", "Prompt", "completion", "Most tokens", "Temperature", "Repetition penalty", "Seed",
            "Method", "Drafts", "both at once, on a worker each", "Run Ctrl Enter", "Sparsity",
            "Sparsity of A as a number", "Answer A", "Sparsity",
        ]  # fmt: skip
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


def test_one_worker_has_nothing_to_share(opened: Open) -> None:
    """Both at once would be one after the other: the second's first token would come behind the first's last."""
    with served(ScriptedEngine()) as url:
        expect(opened(url).get_by_label("both at once")).to_be_disabled()


def test_both_at_once(opened: Open) -> None:
    """If asked to, the second does not wait for the first to end; equal answers are called equal."""
    gate = threading.Event()
    with served(ScriptedEngine(gate=gate), ScriptedEngine(gate=gate), workers=2) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("30")
        page.get_by_label("both at once").check()
        run(page)
        for name in "AB":
            expect(state(page, name)).to_have_text("Reading the prompt …")
        until_running(url, 2)
        gate.set()
        both_done(page)
        expect(page.locator("#agreement")).to_have_text("Both answers are the same, word for word.")
        assert page.locator("mark").count() == 0


def test_tokens_that_pick_what_they_read(opened: Open) -> None:
    """By method griffin+ there are no kept neurons to draw: a sentence says so, and a second run and a click go on."""
    with served(ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("5")
        for _ in range(2):
            run(page)
            both_done(page)
            for name in "AB":
                expect(pane(page, name)).to_contain_text(
                    "on average 60 % of the gate, 50 % of the up and 25 % of the down matrix."
                )


def test_markup_of_a_model_stays_text(opened: Open) -> None:
    """Answers are shown as they were written, also where words are marked; nothing of them becomes part of the page."""
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
    """The status line is long gone: what came stays, and the sentence says that it broke off."""
    with served(ScriptedEngine(fail_after=5)) as url:
        page = opened(url)
        run(page)
        expect(pane(page, "A").get_by_role("alert")).to_contain_text("The answer broke off: the request failed inside")
        expect(state(page, "A")).to_have_text("Failed after 5 tokens.")


def test_a_busy_server(opened: Open, watches: list[Watch]) -> None:
    """A full queue is a sentence that says when to try again."""
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
    """No connection is a sentence too."""
    with served(ScriptedEngine()) as url:
        page = opened(url)
    run(page)
    expect(pane(page, "A").get_by_role("alert")).to_have_text(
        "The server cannot be reached. See whether it still runs, then try again."
    )
    assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in watches[-1].complaints)
    watches[-1].complaints.clear()


def test_a_key(opened: Open, watches: list[Watch]) -> None:
    """The page itself needs none, asks for one, sends it, and keeps it for this tab alone."""
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
    """The page waits for it, without an error, and goes on by itself."""
    gate = threading.Event()

    def loader(settings: object) -> Loaded:
        gate.wait(30)
        return Loaded("late", CharacterTokenizer(), [ScriptedEngine()])

    with served(loader=loader) as url:
        page = opened(url, ready=False)
        expect(page.locator("#model")).to_contain_text("Not ready: the model is still loading")
        gate.set()
        expect(page.locator("#model")).to_contain_text("late, ")


def test_a_model_without_a_chat_template(opened: Open, watches: list[Watch]) -> None:
    """Chat is switched off, with the reason."""
    tokenizer = CharacterTokenizer()
    tokenizer.chat_template = None
    with served(ScriptedEngine(), tokenizer=tokenizer) as url:
        page = opened(url)
        page.get_by_label("chat").check()
        with refused(page, watches, 400):
            run(page)
            expect(page.get_by_text("Chat is off: this model has no chat template.")).to_be_visible()
        expect(page.get_by_label("chat")).to_be_disabled()
        expect(page.get_by_label("completion")).to_be_checked()
        run(page)
        both_done(page)


def module(page: Page, name: str, script: str, argument: object = None) -> Any:
    """What a function of a module of the page gives; without the page's own policy, which no test could pass."""
    return page.evaluate(f"async argument => {{ const m = await import('/page/{name}.js'); {script} }}", argument)


@pytest.mark.parametrize(
    ("left", "right", "said", "marked"),
    [
        ("the sun is up", "the sun is up", "Both answers are the same, word for word.", ([], [])),
        ("a b c d", "a x c d", "First difference at word 2; 75 % of the words agree.", (["b"], ["x"])),
        ("a b c d", "a c d e", "First difference at word 2; 75 % of the words agree.", (["b"], ["e"])),
        ("x a y b", "a b", "First difference at word 1; 67 % of the words agree.", (["x", "y"], [])),
        ("a b", "a  b three\nfour", "First difference at word 3; 67 % of the words agree.", ([], ["three\nfour"])),
        ("", "a", "First difference at word 1; 0 % of the words agree.", ([], ["a"])),
        ("", " ", "Both answers are empty.", ([], [])),
        ("我喝水", "我喝茶", "First difference at word 3; 67 % of the words agree.", (["水"], ["茶"])),
    ],
)  # fmt: skip
def test_words_are_compared(plain: Page, left: str, right: str, said: str, marked: tuple[list[str], list[str]]) -> None:
    """The longest common subsequence of words; runs of others are marked as one."""
    script = """
      const [left, right] = argument, found = m.compare(left, right);
      const cut = (text, words) => m.differing(words).map(([start, end]) => text.slice(start, end));
      return [m.summary(found), cut(left, found.left), cut(right, found.right)];"""

    assert module(plain, "words", script, [left, right]) == [said, *marked]


def test_very_long_answers_are_compared_in_part(plain: Page) -> None:
    """Their beginnings, and it says so: the comparison takes the product of both lengths."""
    script = "return m.summary(m.compare('a '.repeat(5000), 'b '.repeat(5000)))"

    assert module(plain, "words", script) == (
        "First difference at word 1; 0 % of the words agree. Only the first 3000 were compared."
    )


def test_events_cut_anywhere(plain: Page) -> None:
    """Whatever the sizes of the chunks, the events are the same: comments skipped, characters whole."""
    text = ': keep-alive\n\ndata: {"text":"näh 水🌊"}\n\ndata: two\r\ndata:lines\r\n\r\nevent: x\ndata: [DONE]\n\n'
    script = """
      const bytes = new TextEncoder().encode(argument), found = [];
      for (let size = 1; size <= bytes.length; size++) {
        const decoder = new m.EventDecoder(), events = [];
        for (let at = 0; at < bytes.length; at += size) events.push(...decoder.feed(bytes.subarray(at, at + size)));
        found.push(JSON.stringify(events));
      }
      return [...new Set(found)].map(JSON.parse);"""

    assert module(plain, "api", script, text) == [['{"text":"näh 水🌊"}', "two\nlines", "[DONE]"]]


@pytest.fixture(scope="module")
def plain(browser: Browser, url: str) -> Iterator[Page]:
    """An empty document beside the page's modules."""
    page = browser.new_page()

    def blank(route: Route) -> None:
        route.fulfill(body="<!doctype html>", content_type="text/html")

    page.route(f"{url}/blank", blank)
    page.goto(f"{url}/blank")
    yield page
    page.close()


def test_what_is_served() -> None:
    """A fixed set of files, each with its type, a strict policy and an ETag; not part of the documented API."""
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


def test_no_inline_code_and_nobody_else() -> None:
    """What the policy would refuse is not there, and the only other address is a link to read."""
    folder = ROOT / "server" / "page"
    index = (folder / "index.html").read_text()

    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", index) == []
    addresses = {
        address for file in folder.iterdir() for address in re.findall(r"https?://[^\"' )]+", file.read_text())
    }
    assert addresses == {"https://arxiv.org/abs/2404.01365", "http://www.w3.org/2000/svg"}


def test_the_page_can_be_off() -> None:
    """Then there is nothing at /, and keys say nothing of it."""
    with served(ScriptedEngine(), page=False) as url:
        assert httpx.get(f"{url}/").status_code == 404
        assert httpx.get(f"{url}/page/page.js").status_code == 404
    with served(ScriptedEngine(), page=False, api_keys="key") as url:
        assert httpx.get(f"{url}/").status_code == 401


def test_the_page_needs_no_key() -> None:
    """Its files are no secret; all else is, also what is not there."""
    with served(ScriptedEngine(), api_keys="key") as url:
        for path in ("", "page/page.js", "page/state"):
            assert httpx.get(f"{url}/{path}").status_code == 200
        for path in ("page/none.js", "v1/models", "v1/griffin/experts/cafe"):
            assert httpx.get(f"{url}/{path}").status_code == 401
