"""Two answers side by side: the page shows their cost and quality, with real servers."""

import re
import threading
import time
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.page.window import (
    Open,
    answer,
    both_done,
    choose,
    pane,
    run,
    shoot,
    sparsities,
    state,
    until_running,
)
from tests.server.scripted import ScriptedEngine, served


def test_the_full_model_beside_half_of_it(opened: Open, url: str) -> None:
    """The page starts with this comparison. Answers and figures are the API's own, with quality beside speed."""
    page = opened(url)
    expect(page.get_by_label("Sparsity of A as a number")).to_have_value("0")
    expect(page.get_by_label("Sparsity of B as a number")).to_have_value("0.5")
    expect(page.get_by_label("Method of B")).to_have_value("griffin+")
    expect(pane(page, "B").locator(".counts")).to_contain_text("MB a token (")
    run(page)
    both_done(page)

    prompt = page.get_by_label("Prompt", exact=True).input_value()
    body = {"prompt": prompt, "max_tokens": 128, "temperature": 0, "seed": 1, "repetition_penalty": 1.1}
    full, half = (
        httpx.post(f"{url}/v1/completions", json={**body, **more}, timeout=120).json()
        for more in ({"sparsity": 0}, {"sparsity": 0.5, "griffin": {"compare": True}})
    )
    assert [answer(page, "A"), answer(page, "B")] == [full["choices"][0]["text"], half["choices"][0]["text"]]
    report, whole = half["griffin"], full["griffin"]["bytes_per_token"]
    read, active = report["bytes_per_token"], report["active_parameters"]
    expect(pane(page, "A").locator(".counts")).to_have_text(
        f"{whole / 1e6:.0f} MB a token (the full model), 134.5 M of 134.5 M parameters"
    )
    expect(pane(page, "B").locator(".counts")).to_have_text(
        f"{read / 1e6:.0f} MB a token ({100 - round(100 * read / whole)} % fewer), "
        f"{active / 1e6:.1f} M of 134.5 M parameters"
    )
    comparison = report["comparison"]
    same = round(100 * comparison["top1_agreement"])
    expect(pane(page, "B").locator(".quality")).to_have_text(
        re.compile(rf"same next token as the full model\s*{same} %\s*KL {comparison['kl']:.2f}, on 127 tokens")
    )
    expect(pane(page, "A").locator(".quality")).to_be_hidden()
    gate, up, down = (f"{100 * share:.0f} %" for share in report["shares_read"].values())
    expect(pane(page, "B").locator("figcaption")).to_have_text(
        f"Each token picked the weights that it read: on average {gate} of the gate, {up} of the up and {down} of "
        "the down matrix."
    )
    expect(state(page, "A")).to_have_text("Done by the full model: 128 tokens, as many as allowed.")
    expect(state(page, "B")).to_have_text("Done at sparsity 0.5: 128 tokens, as many as allowed.")
    for name in "AB":
        assert float(pane(page, name).locator(".rate").inner_text()) > 0
        expect(pane(page, name).locator(".rate-server")).to_have_text(re.compile(r"server: [\d.]+"))
        expect(pane(page, name).locator(".first-server")).to_have_text(re.compile(r"server: [\d.]+ m?s"))
        expect(pane(page, name).locator(".usage")).to_contain_text("prompt tokens were read")
        assert pane(page, name).locator("mark").count() > 0
    expect(page.locator("#verdict")).to_have_text(
        re.compile(
            rf"B reads {read / 1e6:.0f} MB a token instead of {whole / 1e6:.0f} MB, is [\d.]+ times as fast, and picks "
            rf"the same next token as the full model {same} times in 100\."
        )
    )
    expect(page.locator("#agreement")).to_have_text(
        re.compile(r"First difference at word \d+; \d+ % of the words agree.")
    )
    shoot(page, "light")
    page.emulate_media(color_scheme="dark")
    shoot(page, "dark")


def test_measuring_quality_changes_no_times(opened: Open) -> None:
    """The comparison comes after the last token. The state says so, and speeds do not change."""
    gate = threading.Event()
    with served(engine := ScriptedEngine(step_s=0.01, compare_gate=gate)) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("30")
        began = time.monotonic()
        run(page)
        expect(state(page, "B")).to_have_text("Comparing the answer with the full model …")
        generated_s = time.monotonic() - began
        before = pane(page, "B").locator(".rate").inner_text()
        page.wait_for_timeout(1_000)
        gate.set()
        both_done(page)

        expect(pane(page, "B").locator(".rate")).to_have_text(before)
        server = pane(page, "B").locator(".rate-server").inner_text().removeprefix("server: ")
        # The server's time ends with the last token: no rate of the page, whose tokens may come late and together.
        assert 29 / float(server) < generated_s
        expect(pane(page, "B").locator(".quality")).to_contain_text("75 %")
        expect(pane(page, "B").locator(".kl")).to_have_text("KL 0.25, on 4 tokens")
        # The full model is not compared with itself.
        assert len(engine.compared) == 1


def test_quality_can_be_left_unmeasured(opened: Open) -> None:
    """Measuring takes time; without it no quality is shown."""
    with served(engine := ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("measure how close answers are").uncheck()
        page.get_by_label("Most tokens").fill("20")
        run(page)
        both_done(page)
        expect(pane(page, "B").locator(".quality")).to_be_hidden()
        expect(page.locator("#verdict")).not_to_contain_text("next token")
        assert engine.compared == []


def test_each_pane_has_its_own_choices(opened: Open) -> None:
    """Requests have the pane's method, mode and drafts. A lossless answer is not compared with the full model."""
    with served(engine := ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("9")
        sparsities(page, 0.25, 0.5)
        choose(page, "Method", "griffin", "A")
        choose(page, "Mode", "lossless", "B")
        choose(page, "Drafts", "pruned", "B")
        expect(pane(page, "B")).to_contain_text("The full model checks all tokens: the answer is its own")
        run(page)
        both_done(page)

        (one, checks_one), (other, checks_other) = engine.asked
        assert [(one.method, one.sparsity), (other.method, other.sparsity)] == [("griffin", 0.25), ("griffin+", 0.5)]
        assert (checks_one.mode, checks_one.draft) == ("fast", None)
        assert (checks_other.mode, checks_other.draft) == ("lossless", "pruned")
        expect(state(page, "B")).to_have_text("Done at sparsity 0.5, lossless: 9 tokens, as many as allowed.")
        expect(pane(page, "B").locator(".usage")).to_contain_text("6 of 8 drafted tokens stayed.")
        expect(pane(page, "A").locator(".quality")).to_be_visible()
        expect(pane(page, "B").locator(".quality")).to_be_hidden()


def test_lossless_is_the_full_models_answer(opened: Open, url: str) -> None:
    """With real weights every word equals the full model's answer."""
    page = opened(url)
    page.get_by_label("Most tokens").fill("24")
    choose(page, "Mode", "lossless", "B")
    run(page)
    both_done(page)
    expect(page.locator("#agreement")).to_have_text("Both answers are the same, word for word.")


def test_every_combination_that_can_be_chosen_is_accepted(opened: Open) -> None:
    """Each mode has its drafts. If n-grams draft for the full model alone, sparsity and method are disabled."""
    with served(engine := ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("two panes").uncheck()
        page.get_by_label("Most tokens").fill("2")
        sparsity = page.get_by_label("Sparsity of A as a number")
        sparsity.fill("0.5")
        of_fast, of_others = ["", "ngram", "none"], ["", "both", "pruned", "ngram"]
        for mode, drafts in {"fast": of_fast, "guarded": of_others, "lossless": of_others}.items():
            choose(page, "Mode", mode, "A")
            options = page.get_by_label("Drafts of A").locator("option")
            assert [option.get_attribute("value") for option in options.all()] == drafts
            for draft in drafts:
                choose(page, "Drafts", draft, "A")
                alone = mode != "fast" and draft == "ngram"
                assert sparsity.is_disabled() == page.get_by_label("Method of A").is_disabled() == alone
                for method in ("griffin+", "griffin") if not alone else ("",):
                    if method:
                        choose(page, "Method", method, "A")
                    run(page)
                    both_done(page)
                    pruning, verification = engine.asked[-1]
                    assert (verification.mode, verification.draft or "") == (mode, draft)
                    assert pruning.sparsity == (0 if alone else 0.5)
                    assert alone or pruning.method == method
        assert len(engine.asked) == 6 + 7 + 7


@pytest.mark.parametrize(
    ("flags", "method", "mode"),
    [({"draft": "none"}, "griffin+", "fast"), ({"method": "griffin", "mode": "guarded"}, "griffin", "guarded")],
)
def test_the_servers_choices_are_the_defaults(opened: Open, flags: dict[str, Any], method: str, mode: str) -> None:
    """The page selects the server's method and mode; the server's drafts apply by default."""
    with served(engine := ScriptedEngine(), **flags) as url:
        page = opened(url)
        for name in "AB":
            expect(page.get_by_label(f"Method of {name}")).to_have_value(method)
            expect(page.get_by_label(f"Mode of {name}")).to_have_value(mode)
        page.get_by_label("Most tokens").fill("8")
        run(page)
        both_done(page)

    assert [checks.draft for _, checks in engine.asked] == [flags.get("draft")] * 2


def test_one_pane_alone(opened: Open) -> None:
    """The other pane is neither shown nor run, even if it holds an invalid value."""
    with served(engine := ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("Sparsity of B as a number").fill("")
        page.get_by_label("two panes").uncheck()
        page.get_by_label("Most tokens").fill("5")
        expect(pane(page, "B")).to_be_hidden()
        run(page)
        both_done(page)
        assert answer(page, "A") == "bcdef"
        expect(page.locator("#verdict")).to_be_empty()
        assert len(engine.asked) == 1


def test_drafts_are_counted_and_can_be_left_out(opened: Open) -> None:
    """They are counted only if there are any; a sentence names them, because they change the speed."""
    with served(engine := ScriptedEngine(drafts=True)) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("9")
        for choice, drafted in (("ngram", "6 of 8 drafted tokens stayed."), ("none", None)):
            choose(page, "Drafts", choice)
            run(page)
            both_done(page)
            for name in "AB":
                usage = pane(page, name).locator(".usage")
                expect(usage).to_contain_text(drafted or "prompt tokens were read.")
                assert ("drafted" in usage.inner_text()) == bool(drafted)
            told = page.locator("#verdict").inner_text()
            assert ("Drafts brought 6 of A\u2019s 9 tokens" in told) == bool(drafted)

    assert [checks.source for _, checks in engine.asked] == ["ngram", "ngram", "none", "none"]


def test_two_sets_of_neurons_are_compared(opened: Open, url: str) -> None:
    """A smaller set of the same prompt lies in the larger one; keys move through layers; chats work too."""
    page = opened(url)
    sparsities(page, 0.25, 0.5)
    choose(page, "Method", "griffin")
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


# The number of drawn pixels of a canvas.
INK = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, i) => i % 4 === 3 && value > 0).length;
}"""


def test_a_cached_prompt_is_named(opened: Open, url: str) -> None:
    """The second reading of a prompt is cached, so first tokens cannot be compared: the page says so."""
    page = opened(url)
    page.get_by_label("Prompt", exact=True).fill("word " * 400)
    page.get_by_label("Most tokens").fill("2")
    run(page)
    both_done(page)

    expect(pane(page, "A").locator("figcaption")).to_have_text("All 46,080 neurons were used.")
    expect(pane(page, "A").locator(".counts")).to_have_text(
        "97 MB a token (the full model), 134.5 M of 134.5 M parameters"
    )
    expect(pane(page, "B").locator(".usage")).to_have_text(
        re.compile(r"256 of 40\d prompt tokens were known already, which brought the first token sooner.")
    )


def test_method_griffin_plus_has_no_kept_neurons(opened: Open) -> None:
    """griffin+ has no kept neurons to draw: a sentence says so, and a second run works."""
    with served(ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("5")
        for _ in range(2):
            run(page)
            both_done(page)
            expect(pane(page, "A")).to_contain_text("All 200 neurons were used.")
            expect(pane(page, "B")).to_contain_text(
                "on average 60 % of the gate, 50 % of the up and 25 % of the down matrix."
            )


def test_one_worker_cannot_run_both_at_once(opened: Open) -> None:
    """The choice is hidden, because the second answer would wait for the first one."""
    with served(ScriptedEngine()) as url:
        expect(opened(url).get_by_label("both at once")).to_be_hidden()


def test_both_at_once(opened: Open) -> None:
    """The second answer does not wait, and equal answers are called equal.

    Both slow each other, so speeds are not compared. Quality is not measured, because this would slow the other.
    """
    gate = threading.Event()
    engines = [ScriptedEngine(gate=gate) for _ in range(2)]
    with served(*engines, workers=2) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("30")
        page.get_by_label("both at once").check()
        expect(page.get_by_label("measure how close answers are")).to_be_disabled()
        run(page)
        for name in "AB":
            expect(state(page, name)).to_have_text("Reading the prompt …")
        until_running(url, 2)
        gate.set()
        both_done(page)
        expect(page.locator("#agreement")).to_have_text("Both answers are the same, word for word.")
        assert page.locator("mark").count() == 0
        expect(page.locator("#verdict")).to_contain_text("B reads")
        expect(page.locator("#verdict")).not_to_contain_text("times as fast")
        assert [engine.compared for engine in engines] == [[], []]
