"""What the server reports about its answers, and what the client measured. No I/O."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.distribution import median
from loadtest.sample import Sample


@dataclass(frozen=True, slots=True)
class Row:
    """A time in milliseconds, or a rate. ``client`` counts from when a request was sent, as a server does."""

    name: str
    title: str
    server: Callable[[Mapping[str, object]], float | None]
    client: Callable[[Sample], float | None]


def _field(name: str) -> Callable[[Mapping[str, object]], float | None]:
    def read(metrics: Mapping[str, object]) -> float | None:
        value = metrics.get(name)
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if known else None  # type: ignore[arg-type]  # known says so

    return read


def _whole(metrics: Mapping[str, object]) -> float | None:
    first, rest = _field("time_to_first_token_ms")(metrics), _field("generation_time_ms")(metrics)
    return None if first is None or rest is None else first + rest


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _per_second(sample: Sample) -> float | None:
    return 1 / sample.tpot_s if sample.tpot_s else None


ROWS = (
    Row("queue_time_ms", "queue, ms", _field("queue_time_ms"), lambda sample: None),
    Row("prefill_time_ms", "prefill, ms", _field("prefill_time_ms"), lambda sample: None),
    Row(
        "time_to_first_token_ms",
        "time to first token, ms",
        _field("time_to_first_token_ms"),
        lambda sample: _ms(sample.text_s[0] - sample.sent_s) if sample.text_s else None,
    ),
    Row("mean_itl_ms", "time per output token, ms", _field("mean_itl_ms"), lambda sample: _ms(sample.tpot_s)),
    Row("generation_time_ms", "first to last token, ms", _field("generation_time_ms"), lambda s: _ms(s.decode_s)),
    Row("request_time_ms", "whole request, ms", _whole, lambda sample: _ms(sample.end_s - sample.sent_s)),
    Row("tokens_per_second", "tokens/s", _field("tokens_per_second"), _per_second),
)


def reported(samples: Sequence[Sample]) -> dict[str, dict[str, float | int | None]]:
    """For each row that the server reports: its median, the client's, and the median difference of each request."""
    answered = [sample for sample in samples if sample.answered]
    found = {}
    for row in ROWS:
        pairs = [(row.server(sample.metrics), row.client(sample)) for sample in answered]
        server = [value for value, _ in pairs if value is not None]
        client = [value for _, value in pairs if value is not None]
        differences = [theirs - value for value, theirs in pairs if value is not None and theirs is not None]
        if server:
            found[row.name] = {
                "count": len(server),
                "server": _rounded(median(server)),
                "client": _rounded(median(client)),
                "difference": _rounded(median(differences)),
            }
    return found


def applied(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """What GRIFFIN did: medians of the server's reports, and a count of each reason; None without a report."""
    blocks = [sample.griffin for sample in samples if sample.answered and sample.griffin]
    if not blocks:
        return None

    def usual(name: str) -> float | None:
        return median([value for value in map(_field(name), blocks) if value is not None])

    return {
        "sparsity": usual("sparsity"),
        "active_parameters": int(usual("active_parameters") or 0) or None,
        "total_parameters": int(usual("total_parameters") or 0) or None,
        "bytes_per_token": int(usual("bytes_per_token") or 0) or None,
        "reasons": dict(Counter(str(block.get("reason")) for block in blocks)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
