"""Verified answers and comparisons: what the report and the metrics say of them."""

import threading
import time

import pytest

from griffin import Comparison
from tests.server.client import metric, post, stream
from tests.server.scripted import ScriptedEngine, leave_when, served, wait_until

LOSSLESS = {"mode": "lossless"}
SPEC = "griffin_spec_decode_num_"
WITH_USAGE = {"include_usage": True}
# The time that a comparison takes.
HELD_S = 0.5


def test_a_report_sums_over_all_sequences() -> None:
    """Nine tokens make three blocks of four drafts, of which three stay, for each of four sequences."""
    asked = {"prompt": ["a", "b"], "n": 2, "max_tokens": 10, "sparsity": 0.5}
    with served(ScriptedEngine(), method="griffin") as url:
        report = post(url, **asked, griffin=LOSSLESS).json()["griffin"]

    assert report["verification"] == {
        "drafted_tokens": 48, "accepted_tokens": 36, "acceptance_rate": 0.75, "rollbacks": 12, "passes": 12,
        "forced_tokens": 0, "refreshes": 0, "active_parameters_per_token": round(3 * (1000 + 4 * 700) / 9),
        "bytes_per_token": round(3 * (1600 + 4 * 1000) / 9),
    }  # fmt: skip
    assert report["active_parameters"] == 700


@pytest.mark.parametrize("mode", ["guarded", "lossless"])
def test_metrics_of_a_mode(mode: str) -> None:
    """Metrics have vLLM's names and start at zero. Parameters and bytes are those that were read."""
    with served(ScriptedEngine()) as url:
        before = [metric(url, f"{SPEC}{name}_total", mode=mode) for name in ("drafts", "rollbacks")]
        post(url, max_tokens=10, sparsity=0.5, griffin={"mode": mode})
        counted = {
            name: metric(url, f"{SPEC}{name}_total", mode=mode)
            for name in ("drafts", "draft_tokens", "accepted_tokens", "rollbacks")
        }
        read = metric(url, "griffin_decode_parameters_read_total", sparsity="0.5")
        read_bytes = metric(url, "griffin_decode_bytes_read_total", sparsity="0.5")
        tokens = metric(url, "griffin_generation_tokens_total", sparsity="0.5")
        series = {other: metric(url, f"{SPEC}drafts_total", mode=other) for other in ("guarded", "lossless")}

    assert before == [0, 0]
    assert counted == {"drafts": 3, "draft_tokens": 12, "accepted_tokens": 9, "rollbacks": 3}
    assert (read, read_bytes, tokens) == (3 * (1000 + 4 * 700), 3 * (1600 + 4 * 1000), 10)
    assert series == {"guarded": 0, "lossless": 0, mode: 3}


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_drafts_in_mode_fast(sparsity: float) -> None:
    """Drafts are made by default. The report and the metrics of this mode count them, and each read counts once."""
    with served(ScriptedEngine(drafts=True)) as url:
        before = metric(url, f"{SPEC}drafts_total", mode="fast")
        report = post(url, max_tokens=10, sparsity=sparsity).json()["griffin"]
        counted = [metric(url, f"{SPEC}{name}_total", mode="fast") for name in ("drafts", "draft_tokens", "rollbacks")]
        read = metric(url, "griffin_decode_parameters_read_total", sparsity=f"{sparsity:g}")
        off = post(url, max_tokens=10, sparsity=sparsity, griffin={"draft": "none"}).json()["griffin"]
        after = metric(url, f"{SPEC}drafts_total", mode="fast")

    assert (report["mode"], report["reason"]) == ("fast", "requested")
    assert report["verification"]["drafted_tokens"] == 12
    assert (before, counted, after) == (0, [3, 12, 3], 3)
    assert read == 3 * (1000 + 4 * 700)
    assert off["verification"] is None


def test_a_server_without_drafts() -> None:
    """A request may still ask for drafts, in each mode."""
    asks = ({}, {"draft": "ngram"}, {"mode": "guarded"}, {"mode": "lossless", "draft": "both"})
    with served(engine := ScriptedEngine(drafts=True), draft="none") as url:
        reports = [post(url, max_tokens=5, sparsity=0.5, griffin=griffin).json()["griffin"] for griffin in asks]
        refusal = post(url, griffin={"draft_tokens": 4})

    assert [asked and asked.source for _, asked in engine.asked] == ["none", "ngram", "pruned", "both"]
    assert [bool(report["verification"]) for report in reports] == [False, True, True, True]
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "griffin.draft_tokens")


def test_tokens_of_a_block_are_chunks_of_their_own() -> None:
    """They come in order, although one pass makes them all."""
    with served(ScriptedEngine(drafts=True)) as url:
        *chunks, usage = stream(url, max_tokens=10, stream_options=WITH_USAGE)

    assert [chunk["choices"][0]["text"] for chunk in chunks] == list("abcdefghij")
    assert usage["usage"]["completion_tokens"] == 10
    assert usage["griffin"]["verification"]["passes"] == 3


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_mode_that_has_nothing_to_verify(sparsity: float) -> None:
    """With no sparsity or one token, the report keeps the mode, and all parameters are read."""
    tokens = 1 if sparsity else 3
    with served(ScriptedEngine()) as url:
        report = post(url, max_tokens=tokens, sparsity=sparsity, griffin=LOSSLESS).json()["griffin"]
        read = metric(url, "griffin_decode_parameters_read_total")

    assert report["mode"] == "lossless"
    verification = report["verification"]
    assert verification is None or verification["drafted_tokens"] == verification["passes"] == 0
    assert read == (tokens - 1) * 1000


def test_a_comparison_is_reported_when_it_was_asked_for() -> None:
    """Figures are means over all tokens; the perplexity ratio is a geometric mean."""
    with served(engine := ScriptedEngine()) as url:
        without = post(url, max_tokens=3, sparsity=0.5).json()["griffin"]
        dense = post(url, max_tokens=3, sparsity=0, griffin={"compare": True}).json()["griffin"]
        engine.compared.clear()
        report = post(url, prompt="xy", n=2, max_tokens=3, sparsity=0.5, griffin={"compare": True}).json()["griffin"]
        compared = list(engine.compared)
        mixed = _compared(engine, url, [Comparison(30, 0.5, 0.5, 4.0), Comparison(10, 0.1, 0.9, 1.0)])

    assert without["comparison"] is None
    assert dense["comparison"] is None
    assert report["comparison"] == {"tokens": 8, "kl": 0.25, "top1_agreement": 0.75, "perplexity_ratio": 1.5}
    assert [(prompt, ids) for prompt, ids, _ in compared] == [([120, 121], [97, 98, 99])] * 2
    assert mixed == {
        "tokens": 40, "kl": 0.4, "top1_agreement": 0.6, "perplexity_ratio": pytest.approx(4 ** (3 / 4), abs=1e-5),
    }  # fmt: skip


def _compared(engine: ScriptedEngine, url: str, comparisons: list[Comparison]) -> object:
    """The reported comparison of a request with one sequence for each of ``comparisons``."""
    engine.comparisons = iter(comparisons)
    body = {"prompt": ["x"] * len(comparisons), "max_tokens": 3, "sparsity": 0.5, "griffin": {"compare": True}}
    return post(url, **body).json()["griffin"]["comparison"]


def test_a_comparison_comes_after_the_text() -> None:
    """A stream has sent all text before it, and generation times do not include it."""
    engine = ScriptedEngine(compare_gate=threading.Event())

    def open_late() -> None:
        wait_until(lambda: engine.compared)
        time.sleep(HELD_S)
        engine.compare_gate.set()

    with served(engine) as url:
        threading.Thread(target=open_late).start()
        began = time.monotonic()
        *chunks, usage = stream(url, max_tokens=3, sparsity=0.5, griffin={"compare": True}, stream_options=WITH_USAGE)
        took_s = time.monotonic() - began
        latency_s = metric(url, "griffin_e2e_request_latency_seconds_sum")

    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c"]
    assert usage["griffin"]["comparison"]["tokens"] == 4
    # Half of it, because a busy machine may note the last token a little later than the comparison begins.
    assert latency_s <= took_s - HELD_S / 2
    assert usage["metrics"]["generation_time_ms"] <= 1e3 * latency_s


def test_no_comparison_for_a_client_that_has_left() -> None:
    """A comparison does not begin or go on, and the request counts as a disconnect."""
    gate = threading.Event()
    engine = ScriptedEngine(compare_gate=gate)
    with served(engine) as url:
        asked = {"prompt": "x", "sparsity": 0.5, "griffin": {"compare": True}, "stream": True}
        leave_when(lambda: engine.compared, url, **asked, max_tokens=3)
        wait_until(lambda: metric(url, "griffin_client_disconnects_total") == 1)
        wait_until(lambda: metric(url, "griffin_num_requests_running") == 0)
        begun = len(engine.compared)
        engine.step_s = 0.05
        leave_when(lambda: engine.generated > 5, url, **asked, max_tokens=100)
        wait_until(lambda: metric(url, "griffin_client_disconnects_total") == 2)
        wait_until(lambda: metric(url, "griffin_num_requests_running") == 0)

    assert (begun, len(engine.compared)) == (1, 1)


def test_a_comparison_that_fails_fails_its_request() -> None:
    """The request asked for it, so it gets a 500; the engine is rebuilt."""
    with served(engine := ScriptedEngine(compare_failure=RuntimeError("boom"))) as url:
        answer = post(url, max_tokens=3, sparsity=0.5, griffin={"compare": True})

    assert (answer.status_code, engine.rebuilt) == (500, 1)


def test_a_text_that_ends_at_a_stop_string_is_compared_too() -> None:
    """It is compared once, although tokens came after the stop string."""
    with served(engine := ScriptedEngine(step_s=0.01)) as url:
        answer = post(url, max_tokens=50, stop="c", sparsity=0.5, griffin={"compare": True}).json()

    assert answer["choices"][0]["text"] == "ab"
    assert answer["griffin"]["comparison"]["tokens"] == 4
    assert [ids[:3] for _, ids, _ in engine.compared] == [[97, 98, 99]]
