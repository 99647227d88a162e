"""Rows: medians of timed runs, their spread, and how near they come to the limit.

A decode step reads each active weight, and each key and value of its context, once. No step can be faster than these
bytes over the memory's read bandwidth: this is the limit.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from griffin.experiments.speed.contestants import LLAMA_CPP, Contestant, Run
from griffin.model.accounting import Accounting


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant. Units: bytes, seconds, bytes per second.

    bytes_per_step: active weights, and keys and values at the mean context.
    limit_seconds: the shortest possible time of a token: bytes_per_step over the read bandwidth.
    of_limit: limit_seconds over the measured time of a token.
    ideal_speedup: the full model's bytes_per_step over this row's.
    prompt_over_llama_cpp, over_llama_cpp: how many times as fast as llama.cpp in the same round, for the prompt and
        for a token after it. None: llama.cpp did not run.
    break_even_tokens: the number of tokens after which the selection has saved the time that it took. None: never, or
        the row has no selection.
    """

    name: str
    sparsity: float
    active_parameters: int
    bytes_per_step: int
    seconds_per_token: Spread
    tokens_per_second: float
    bytes_per_second: float
    limit_seconds: float
    of_limit: float
    speedup_over_full: float
    speedup_over_generate: float | None
    ideal_speedup: float
    prompt_over_llama_cpp: Spread | None
    over_llama_cpp: Spread | None
    prefill_seconds: Spread
    selection_seconds: Spread | None
    generation_seconds: Spread
    end_to_end_seconds: Spread
    break_even_tokens: float | None
    peak_bytes: int | None
    runs: list[Run]

    def as_json(self) -> dict[str, object]:
        """As JSON. A run becomes its figures: the times of all its tokens would be most of the file."""
        found = asdict(self)
        found["runs"] = [
            {
                "seconds_per_token": run.per_token,
                "prefill_seconds": run.prefill,
                "selection_seconds": run.selection,
                "generation_seconds": run.generation,
                "end_to_end_seconds": run.end_to_end,
                "peak_bytes": run.peak_bytes,
            }
            for run in self.runs
        ]
        return found


def rows(
    contestants: list[Contestant],
    runs: list[list[Run]],
    accounting: Accounting,
    context_tokens: int,
    read_bandwidth: float,
) -> list[Row]:
    """One row for each contestant.

    Args:
        contestants: one of them is named ``full``.
        runs: those of each contestant.
        context_tokens: the mean length of the context over the decode steps.
        read_bandwidth: of the memory, in bytes per second.
    """
    medians = {
        c.name: statistics.median(run.per_token for run in own) for c, own in zip(contestants, runs, strict=True)
    }
    full, generate = medians["full"], medians.get("generate")
    dense_bytes = accounting.bytes_per_step(accounting.neurons, context_tokens)
    peers = next((own for c, own in zip(contestants, runs, strict=True) if c.name == LLAMA_CPP), [])
    found = []
    for contestant, own in zip(contestants, runs, strict=True):
        kept = accounting.kept(contestant.sparsity)
        read = (contestant.accounting or accounting).bytes_per_step(kept, context_tokens)
        per_token, selection = Spread.of(run.per_token for run in own), _selection(own)
        found.append(
            Row(
                name=contestant.name,
                sparsity=contestant.sparsity,
                active_parameters=accounting.active(kept),
                bytes_per_step=read,
                seconds_per_token=per_token,
                tokens_per_second=1 / per_token.median,
                bytes_per_second=read / per_token.median,
                limit_seconds=read / read_bandwidth,
                of_limit=read / read_bandwidth / per_token.median,
                speedup_over_full=full / per_token.median,
                speedup_over_generate=generate and generate / per_token.median,
                ideal_speedup=dense_bytes / read,
                prompt_over_llama_cpp=_ratios([run.prefill for run in peers], [run.prefill for run in own]),
                over_llama_cpp=_ratios([run.per_token for run in peers], [run.per_token for run in own]),
                prefill_seconds=Spread.of(run.prefill for run in own),
                selection_seconds=selection,
                generation_seconds=Spread.of(run.generation for run in own),
                end_to_end_seconds=Spread.of(run.end_to_end for run in own),
                break_even_tokens=break_even(selection.median, full, per_token.median) if selection else None,
                peak_bytes=max((run.peak_bytes for run in own if run.peak_bytes is not None), default=None),
                runs=own,
            )
        )
    return found


def _selection(runs: Iterable[Run]) -> Spread | None:
    seconds = [run.selection for run in runs if run.selection is not None]
    return Spread.of(seconds) if seconds else None


def _ratios(peers: Sequence[float], own: Sequence[float]) -> Spread | None:
    """How many times as fast, round by round; None without peers. All arguments are seconds."""
    if not peers:
        return None
    return Spread.of(peer / one for peer, one in zip(peers, own, strict=True))


def break_even(selection: float, full: float, pruned: float) -> float | None:
    """The number of tokens after which a selection has saved the seconds that it took. None: never."""
    return selection / (full - pruned) if pruned < full else None
