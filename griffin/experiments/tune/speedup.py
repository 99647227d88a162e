"""Speed-up: how fast the engine continues a user's prompts, full and pruned, timed beside each other."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from griffin import Engine
from griffin.experiments.common.progress import Progress
from griffin.experiments.speed.contestants import engine_contestants
from griffin.request import MethodName


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed from the first generated token to the last, including the choice of neurons, as in Table 3.

    speedup: the full model's median time over this one.
    speedup_lowest, speedup_highest: the lowest and the highest in single rounds.
    """

    tokens_per_second: float
    speedup: float
    speedup_lowest: float
    speedup_highest: float


def measure_speeds(
    engine: Engine, prompts: Sequence[Sequence[int]], sparsities: Sequence[float], tokens: int, rounds: int,
    progress: Progress, method: MethodName,
) -> dict[float, Speed]:  # fmt: skip
    """The speed at each sparsity. The full model (0) always runs and comes first.

    In each round all run in turn on the same prompt, so that other load on the machine slows all of them equally. The
    next round takes the next prompt. A first round warms up and does not count.

    Args:
        tokens: to generate in each run, at least 2.
        rounds: those that count.
    """
    contestants = engine_contestants(engine, list(sparsities), ["flocking"], [method])
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        prompt = list(prompts[number % len(prompts)])
        for contestant, own in zip(contestants, seconds, strict=True):
            progress.begin(f"speed, {len(prompt)}+{tokens} tokens, {contestant.label}")
            run = contestant.run(prompt, tokens)
            progress.advance()
            if number:
                own.append(run.generation)
    # The full model comes first.
    return {c.sparsity: speed(own, seconds[0], tokens) for c, own in zip(contestants, seconds, strict=True)}


def speed(own: Sequence[float], full: Sequence[float], tokens: int) -> Speed:
    """From the seconds that a contestant and the full model took in each round."""
    median = statistics.median(own)
    ratios = [theirs / mine for mine, theirs in zip(own, full, strict=True)]
    return Speed((tokens - 1) / median, statistics.median(full) / median, min(ratios), max(ratios))
