"""Samples for tests of the figures that are computed from them."""

from dataclasses import replace
from typing import Any

from loadtest.sample import Sample

# Due at 1 s and sent 0.1 s late; text at 1.2, 1.3 and 1.5 s; 5 tokens, the last at 1.6 s; over at 1.7 s.
SAMPLE = Sample(
    sparsity=0.5, due_s=1.0, sent_s=1.1, end_s=1.7, text_s=(1.2, 1.3, 1.5), last_s=1.6, tokens=5, prompt_tokens=100,
    cached_tokens=0, finish_reason="length",
    metrics={"time_to_first_token_ms": 80.0, "generation_time_ms": 380.0, "mean_itl_ms": 95.0, "queue_time_ms": 3.0},
    griffin={
        "sparsity": 0.5, "active_parameters": 60, "total_parameters": 100, "bytes_per_token": 120_000_000,
        "reason": "requested",
    },
)  # fmt: skip


def sample(**changes: Any) -> Sample:
    return replace(SAMPLE, **changes)
