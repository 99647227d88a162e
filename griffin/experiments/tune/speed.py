"""Speed of the engine's decode on a user's prompts, full and pruned, beside each other."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from griffin import Engine
from griffin.experiments.common.progress import Progress
from griffin.experiments.speed.contestants import engine_contestants
from griffin.request import MethodName


@dataclass(frozen=True, slots=True)
class Speed:
    """From the first generated token to the last, the choice of the neurons included: what Table 3 shows.

    speedup: over the full model, of the medians.
    speedup_lowest, speedup_highest: in a single round.
    """

    tokens_per_second: float
    speedup: float
    speedup_lowest: float
    speedup_highest: float


def measure_speeds(
    engine: Engine, prompts: Sequence[Sequence[int]], sparsities: Sequence[float], tokens: int, rounds: int,
    progress: Progress, method: MethodName = "griffin",
) -> dict[float, Speed]:  # fmt: skip
    """By sparsity, 0 being the full model, which always runs. ``tokens``: at least 2.

    All run in turn in each round, on the same prompt, so that whatever else the machine does meets all alike. The
    prompts take turns from round to round. A first round is not counted: it warms up.
    """
    contestants = engine_contestants(engine, list(sparsities), ["flocking"], method)
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        prompt = list(prompts[number % len(prompts)])
        for contestant, kept in zip(contestants, seconds, strict=True):
            progress.begin(f"speed, {len(prompt)}+{tokens} tokens, {contestant.label}")
            run = contestant.run(prompt, tokens)
            progress.advance()
            if number:
                kept.append(run.generation)
    # The full model comes first.
    return {c.sparsity: speed(own, seconds[0], tokens) for c, own in zip(contestants, seconds, strict=True)}


def speed(own: Sequence[float], full: Sequence[float], tokens: int) -> Speed:
    """From the seconds of a contestant and of the full model in each round."""
    median = statistics.median(own)
    ratios = [theirs / mine for mine, theirs in zip(own, full, strict=True)]
    return Speed((tokens - 1) / median, statistics.median(full) / median, min(ratios), max(ratios))
