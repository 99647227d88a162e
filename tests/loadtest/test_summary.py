"""Percentiles by hand."""

import pytest

from loadtest.summary import Timing, percentile, summarise


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (99, 4), (1, 1), (100, 4)])
def test_percentile_is_a_measured_value(percent: float, expected: float) -> None:
    """Nearest rank on four numbers."""
    assert percentile([4, 1, 3, 2], percent) == expected


def test_summary() -> None:
    """Distributions of the answered requests, counts of all."""
    timings = [
        Timing(0.5, (0.1, 0.2, 0.4), 0.5),
        Timing(0.5, (0.3, 0.4), 0.45),
        Timing(0.5, error="HTTP 429"),
    ]
    summary = summarise(timings)

    assert summary["requests"] == 3
    assert summary["errors"] == {"HTTP 429": 1}
    assert summary["ttft_ms"] == {"p50": 100.0, "p95": 300.0, "p99": 300.0}
    assert summary["itl_ms"] == {"p50": 100.0, "p95": 200.0, "p99": 200.0}
    assert summary["tokens_per_second"] == 7.5


def test_nothing_measured_is_none() -> None:
    """No answer, no figure."""
    assert summarise([Timing(0.5, error="ConnectError")])["itl_ms"] is None
