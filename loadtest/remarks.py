"""Remarks: what readers should know before they trust the figures. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.distribution import median
from loadtest.sample import UNFINISHED, Sample

# A client distorts the figures if it is late by more than both: milliseconds, and this share of what it measures.
LATE_MS, LATE_SHARE = 5.0, 0.1
# The share of one core that the client may use.
BUSY_SHARE = 0.8
# The mean lengths of answers differ if their ratio is larger.
UNEQUAL = 1.05
MANY_TOKENS_A_CHUNK = 1.1
# Chunks come in bunches if the median gap is below this share of a token's time.
BUNCHED = 0.25


def remarks(
    by_sparsity: Mapping[str, Mapping[str, Any]],
    samples: Sequence[Sample],
    client: Mapping[str, Any],
    *,
    prompts_approximate: bool,
    shared_prefix: bool,
    open_loop: bool,
    fixed_length: int | None = None,
) -> list[str]:
    """The remarks, the most serious first. Each is a sentence or two.

    Args:
        fixed_length: the tokens that each answer should have; None if answers may end earlier.
    """
    found = [
        *_failures(samples),
        *_client(by_sparsity, client),
        *(_overload(samples) if open_loop else ()),
        *_sparsity(by_sparsity),
        *_lengths(by_sparsity),
        *_shortened(by_sparsity, fixed_length),
        *_counting(by_sparsity),
        *_bunches(by_sparsity),
    ]
    if not shared_prefix:
        found += _cache(by_sparsity)
    if prompts_approximate:
        found.append("the server has no /tokenize: the length of prompts is estimated from their words")
    return found


def _failures(samples: Sequence[Sample]) -> list[str]:
    failed = sum(sample.error not in (None, UNFINISHED) for sample in samples)
    unfinished = sum(sample.error == UNFINISHED for sample in samples)
    found = []
    if failed:
        found.append(f"{failed} of {len(samples)} requests failed; latencies leave them out")
    if unfinished:
        found.append(
            f"unfinished when the run was stopped: {unfinished} of {len(samples)} requests; latencies leave them out"
        )
    return found


def _client(by_sparsity: Mapping[str, Mapping[str, Any]], client: Mapping[str, Any]) -> list[str]:
    found, lag = [], client["schedule_lag_ms"]
    measured = [row["ttft_ms"] or row["e2e_ms"] for row in by_sparsity.values()]
    fastest = min((row["p50"] for row in measured if row), default=None)
    if lag and fastest is not None and lag["p99"] > max(LATE_MS, LATE_SHARE * fastest):
        found.append(
            f"the client was late: 1 of 100 requests started {lag['p99']:.0f} ms after it was due; "
            "latencies include that time, so give the client its own machine or a smaller load"
        )
    if client["cpu_share"] > BUSY_SHARE:
        found.append(
            f"the client used {client['cpu_share'] * 100:.0f} % of one core and may have been the limit; "
            "split the load over several clients"
        )
    return found


def _overload(samples: Sequence[Sample]) -> list[str]:
    answered = [sample for sample in samples if sample.answered]
    if len(answered) < 10:
        return []
    last_due = max(sample.due_s for sample in samples)
    behind = max(sample.end_s for sample in answered) - last_due
    usual = median([sample.end_s - sample.sent_s for sample in sorted(answered, key=lambda s: s.due_s)[:5]]) or 0.0
    if behind < max(0.25 * last_due, 3 * usual):
        return []
    return [
        "requests came faster than they were answered: the queue grew to the end, and a longer run would have longer "
        "latencies; lower --rate"
    ]


def _sparsity(by_sparsity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    asked = {name: row for name, row in by_sparsity.items() if name != "none" and row["answered"]}
    if asked and all(row["griffin"] is None for row in asked.values()):
        return ["the server does not report sparsity and may not know it; --no-griffin sends none"]
    return [
        f"sparsity {name} was requested, but {row['griffin']['sparsity']:g} applied "
        f"({', '.join(row['griffin']['reasons'])})"
        for name, row in asked.items()
        if row["griffin"] and abs((row["griffin"]["sparsity"] or 0.0) - float(name)) > 1e-6
    ]


def _lengths(by_sparsity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    means = [row["completion_tokens"]["mean"] for row in by_sparsity.values() if row["completion_tokens"]]
    if len(means) < 2 or max(means) <= UNEQUAL * min(means):
        return []
    return ["answers differ in length between sparsities: compare TTFT, ITL and TPOT, not end-to-end latency"]


def _shortened(by_sparsity: Mapping[str, Mapping[str, Any]], fixed_length: int | None) -> list[str]:
    counts = [row["completion_tokens"]["max"] for row in by_sparsity.values() if row["completion_tokens"]]
    longest = max(counts, default=0)
    if fixed_length is None or not counts or longest >= fixed_length:
        return []
    return [
        f"answers have at most {longest:g} tokens instead of the requested {fixed_length}: the server "
        "shortens answers that do not fit into its context"
    ]


def _bunches(by_sparsity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    pairs = [(row["itl_ms"], row["tpot_ms"]) for row in by_sparsity.values() if row["itl_ms"] and row["tpot_ms"]]
    if all(itl["p50"] >= BUNCHED * tpot["p50"] for itl, tpot in pairs):
        return []
    return ["chunks arrived in bunches: the client was busy, or a proxy held them back; compare TPOT, not ITL"]


def _counting(by_sparsity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if any(row["tokens_counted"] == "chunks" for row in by_sparsity.values()):
        return ["the server does not say how many tokens it generated: each chunk of text counts as one"]
    several = max((row["tokens_per_chunk"] or 0.0 for row in by_sparsity.values()), default=0.0)
    if several <= MANY_TOKENS_A_CHUNK:
        return []
    return [f"a chunk holds {several:.1f} tokens on average: ITL is between chunks, TPOT is for each token"]


def _cache(by_sparsity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    pairs = [(row["cached_tokens"], row["prompt_tokens"]) for row in by_sparsity.values()]
    share = max((cached["mean"] / prompt["mean"] for cached, prompt in pairs if cached and prompt), default=0.0)
    if share < 0.05:
        return []
    return [f"{share * 100:.0f} % of the prompt tokens came from the server's prefix cache, despite their own numbers"]
