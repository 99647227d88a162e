"""Objective: the limits that a good request keeps."""

from dataclasses import dataclass

from loadtest.distribution import percentile
from loadtest.sample import Sample

# Limits by name, and what they mean for a request, in words for the report.
MEANINGS = {
    "ttft": "time to first token",
    "itl": "99th percentile of its inter-token latencies (the largest, if there are fewer than 100)",
    "tpot": "mean time per output token after the first",
    "e2e": "end-to-end latency",
}
STREAMED = ("ttft", "itl", "tpot")


@dataclass(frozen=True, slots=True)
class Objective:
    """Limits in milliseconds, by their names in MEANINGS. All must hold."""

    limits_ms: tuple[tuple[str, float], ...]

    def holds(self, sample: Sample) -> bool:
        """Whether an answer keeps all limits. Limits on itl and tpot do not apply if there is no second token."""
        if not sample.answered:
            return False
        gaps = sample.gaps_s
        values_s = {
            "ttft": sample.ttft_s,
            "itl": percentile(gaps, 99) if gaps else None,
            "tpot": sample.tpot_s,
            "e2e": sample.e2e_s,
        }
        limited = [(values_s[name], limit_ms) for name, limit_ms in self.limits_ms]
        return all(value is None or value * 1e3 <= limit_ms for value, limit_ms in limited)
