"""Timings of requests become percentiles. No I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, in seconds from its intended start: a client that starts late does not hide a slow server.

    token_s: when each piece of text came. error: why there is no answer, or None.
    """

    sparsity: float
    token_s: tuple[float, ...] = ()
    end_s: float = 0.0
    error: str | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def summarise(timings: Sequence[Timing]) -> dict[str, object]:
    """Counts and milliseconds; a distribution is None where nothing was measured."""
    answered = [timing for timing in timings if timing.error is None]
    gaps = [
        later - earlier
        for timing in answered
        for earlier, later in zip(timing.token_s, timing.token_s[1:], strict=False)
    ]
    errors = [timing.error for timing in timings if timing.error is not None]
    return {
        "requests": len(timings),
        "errors": {error: errors.count(error) for error in sorted(set(errors))},
        "ttft_ms": _distribution([timing.token_s[0] for timing in answered if timing.token_s]),
        "itl_ms": _distribution(gaps),
        "e2e_ms": _distribution([timing.end_s for timing in answered]),
        "tokens_per_second": round(len(gaps) / sum(gaps), 2) if gaps else None,
    }


def _distribution(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{percent}": round(percentile(seconds, percent) * 1e3, 2) for percent in PERCENTILES}
