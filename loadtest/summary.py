"""Summary: the samples of one sparsity become counts, percentiles and rates. No I/O."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from loadtest.distribution import distribution
from loadtest.objective import Objective
from loadtest.sample import UNFINISHED, Sample

MILLISECONDS = 1e3
T = TypeVar("T")


def summarise(samples: Sequence[Sample], wall_s: float, objective: Objective | None = None) -> dict[str, Any]:
    """Figures of one sparsity. The unit is in each name; None: nothing was measured.

    Only answered requests count in latencies. Failed ones are counted by kind, with the server's first message.

    Args:
        wall_s: seconds from the beginning of the run to its end.
        objective: for goodput; None leaves it out.
    """
    answered = [sample for sample in samples if sample.answered]
    unfinished = sum(sample.error == UNFINISHED for sample in samples)
    failed = [sample for sample in samples if sample.error not in (None, UNFINISHED)]
    tokens = _known(sample.count for sample in answered)
    return {
        "requests": len(samples),
        "answered": len(answered),
        "unfinished": unfinished,
        "errors": dict(sorted(Counter(str(sample.error) for sample in failed).items())),
        "error_messages": {str(sample.error): sample.message for sample in reversed(failed) if sample.message},
        "ttft_ms": distribution(_known(sample.ttft_s for sample in answered), MILLISECONDS),
        "itl_ms": distribution([gap for sample in answered for gap in sample.gaps_s], MILLISECONDS),
        "tpot_ms": distribution(_known(sample.tpot_s for sample in answered), MILLISECONDS),
        "e2e_ms": distribution([sample.e2e_s for sample in answered], MILLISECONDS),
        "tokens_per_second": _decode_rate(answered),
        "tokens": sum(tokens),
        "tokens_counted": _counted(answered),
        "tokens_per_chunk": _tokens_per_chunk(answered),
        "completion_tokens": distribution(tokens),
        "prompt_tokens": distribution(_known(sample.prompt_tokens for sample in answered)),
        "cached_tokens": distribution(_known(sample.cached_tokens for sample in answered)),
        "finish_reasons": dict(Counter(str(sample.finish_reason) for sample in answered)),
        "requests_per_second": _rate(len(answered), wall_s),
        "throughput_tokens_per_second": _rate(sum(tokens), wall_s),
        "goodput": _goodput(samples, len(samples) - unfinished, wall_s, objective),
    }


def compared(summaries: dict[str, dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Ratios of each sparsity to the first: of decode speed (faster above 1), of median latencies (faster below 1)."""
    (first, *others) = summaries
    return {
        name: {
            "tokens_per_second": _ratio(summaries[name]["tokens_per_second"], summaries[first]["tokens_per_second"]),
            **{
                key: _ratio(_p50(summaries[name][key]), _p50(summaries[first][key]))
                for key in ("ttft_ms", "tpot_ms", "e2e_ms")
            },
        }
        for name in others
    }


def _goodput(
    samples: Sequence[Sample], judged: int, wall_s: float, objective: Objective | None
) -> dict[str, Any] | None:
    if objective is None:
        return None
    good = sum(map(objective.holds, samples))
    return {
        "good": good,
        "share": round(good / judged, 4) if judged else None,
        "requests_per_second": _rate(good, wall_s),
    }


def _decode_rate(answered: Sequence[Sample]) -> float | None:
    """Tokens after the first over the time they took: the speed that one reader sees."""
    timed = [(sample.count - 1, sample.decode_s) for sample in answered if sample.count and sample.decode_s]
    seconds = sum(decode_s for _, decode_s in timed)
    return round(sum(tokens for tokens, _ in timed) / seconds, 2) if seconds else None


def _counted(answered: Sequence[Sample]) -> str | None:
    """Who counted the tokens: the server (``usage``) or the client (``chunks``)."""
    if not answered:
        return None
    if all(sample.tokens is not None for sample in answered):
        return "usage"
    return "chunks" if any(sample.text_s for sample in answered) else None


def _tokens_per_chunk(answered: Sequence[Sample]) -> float | None:
    streamed = [sample for sample in answered if sample.tokens and sample.text_s]
    chunks = sum(len(sample.text_s) for sample in streamed)
    return round(sum(sample.tokens or 0 for sample in streamed) / chunks, 3) if chunks else None


def _known(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 4) if seconds > 0 else None


def _p50(found: dict[str, float] | None) -> float | None:
    return found["p50"] if found else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return round(value / base, 4) if value is not None and base else None
