"""Percentiles, rates and goodput, checked by hand."""

import pytest

from loadtest.distribution import distribution, percentile
from loadtest.objective import Objective
from loadtest.reported import applied, reported
from loadtest.sample import UNFINISHED, Sample
from loadtest.summary import compared, summarise
from loadtest.table import parameters
from tests.loadtest.samples import SAMPLE, sample

FAILED = Sample(0.5, 1.0, 1.0, 1.2, error="HTTP 429 queue_full", message="wait")
STOPPED = Sample(0.5, 2.0, 2.0, 2.5, text_s=(2.2,), error=UNFINISHED)


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (99, 4), (1, 1), (100, 4)])
def test_percentile_is_a_measured_value(percent: float, expected: float) -> None:
    """The nearest rank of four numbers."""
    assert percentile([4, 1, 3, 2], percent) == expected


def test_distribution() -> None:
    """Values are scaled; without values there is no distribution."""
    assert distribution([0.004, 0.001, 0.003, 0.002], 1e3) == {
        "count": 4, "mean": 2.5, "min": 1.0, "p50": 2.0, "p90": 4.0, "p95": 4.0, "p99": 4.0, "max": 4.0,
    }  # fmt: skip
    assert distribution([]) is None


def test_latencies_count_from_the_intended_start() -> None:
    """A late send does not shorten them."""
    assert SAMPLE.ttft_s == pytest.approx(0.2)
    assert SAMPLE.e2e_s == pytest.approx(0.7)
    assert SAMPLE.gaps_s == pytest.approx([0.1, 0.2])


def test_time_per_output_token_counts_tokens_not_chunks() -> None:
    """Three chunks hold five tokens: 0.4 s for four. Without the server's count, chunks count."""
    assert SAMPLE.tpot_s == pytest.approx(0.1)
    assert sample(tokens=None).tpot_s == pytest.approx(0.2)
    assert sample(tokens=1).tpot_s is None
    assert sample(text_s=(1.5,)).tpot_s is None, "all at once is no speed"


def test_summary() -> None:
    """Latencies are those of answered requests. Failed ones are counted by kind, unfinished ones separately."""
    summary = summarise([SAMPLE, FAILED, STOPPED], wall_s=2.0)

    assert (summary["requests"], summary["answered"], summary["unfinished"]) == (3, 1, 1)
    assert summary["errors"] == {"HTTP 429 queue_full": 1}
    assert summary["error_messages"] == {"HTTP 429 queue_full": "wait"}
    assert summary["ttft_ms"]["count"] == summary["e2e_ms"]["count"] == 1
    assert summary["itl_ms"]["p50"] == 100
    assert summary["itl_ms"]["p99"] == 200
    assert summary["tpot_ms"]["p50"] == 100
    assert summary["tokens_per_second"] == 10
    assert summary["tokens_per_chunk"] == pytest.approx(5 / 3, abs=1e-3)
    assert summary["throughput_tokens_per_second"] == 2.5
    assert summary["tokens_counted"] == "usage"


def test_nothing_measured_is_none() -> None:
    """Without an answer there is no figure; a whole answer has only an end-to-end time."""
    assert summarise([FAILED], 1.0)["itl_ms"] is None
    whole = summarise([Sample(0.0, 0.0, 0.0, 0.5, tokens=8)], 1.0)

    assert whole["ttft_ms"] is whole["itl_ms"] is whole["tpot_ms"] is whole["tokens_per_second"] is None
    assert whole["e2e_ms"]["p50"] == 500


@pytest.mark.parametrize(
    ("limits", "holds"),
    [
        ([("ttft", 200.001)], True),
        ([("ttft", 199)], False),
        ([("itl", 199)], False),
        ([("tpot", 101)], True),
        ([("e2e", 701), ("itl", 201)], True),
        ([("e2e", 701), ("itl", 199)], False),
    ],
)
def test_a_good_request_keeps_all_limits(limits: list[tuple[str, float]], holds: bool) -> None:
    """The sample has TTFT 200 ms, largest gap 200 ms, TPOT 100 ms and 700 ms in all."""
    assert Objective(tuple(limits)).holds(SAMPLE) is holds


def test_goodput() -> None:
    """A failed request counts as not good; one that the user stopped does not count."""
    goodput = summarise([SAMPLE, FAILED, STOPPED], 4.0, Objective((("ttft", 300),)))["goodput"]

    assert goodput == {"good": 1, "share": 0.5, "requests_per_second": 0.25}


def test_comparison() -> None:
    """Each sparsity is compared with the first."""
    slow, fast = summarise([SAMPLE], 1.0), summarise([sample(last_s=1.4)], 1.0)
    ratios = compared({"0": slow, "0.5": fast})

    assert list(ratios) == ["0.5"]
    assert ratios["0.5"] == {"tokens_per_second": 2.0, "ttft_ms": 1.0, "tpot_ms": 0.5, "e2e_ms": 1.0}


def test_server_beside_client() -> None:
    """Medians; the client counts from when it sent. Times that only the server knows have no client's value."""
    rows = reported([SAMPLE, FAILED])

    assert rows["time_to_first_token_ms"] == {"count": 1, "server": 80, "client": 100, "difference": 20}
    assert rows["request_time_ms"] == {"count": 1, "server": 460, "client": 600, "difference": 140}
    assert rows["queue_time_ms"]["client"] is None
    assert "tokens_per_second" not in rows
    assert reported([sample(metrics={})]) == {}


def test_what_griffin_applied() -> None:
    """It comes from the server's report; None if there is none."""
    assert applied([SAMPLE, sample(griffin={})]) == {
        "sparsity": 0.5, "active_parameters": 60, "total_parameters": 100, "bytes_per_token": 120_000_000,
        "reasons": {"requested": 1},
    }  # fmt: skip
    assert applied([sample(griffin={})]) is None


def test_what_griffin_applied_in_words() -> None:
    """Bytes are left out if the server does not count them."""
    known = applied([SAMPLE])

    assert parameters(known) == "60 of 100 parameters active (60 %), 120 MB of weights a token"
    assert parameters({**known, "bytes_per_token": None}) == "60 of 100 parameters active (60 %)"
