"""PassLimit: which prompts go through the decoder's passes, and which through the model's own code.

The model's own code takes a while for its weights, however few the tokens are. Passes take less for few tokens, and
more for many. The two round differently. So all engines of a model share one limit, which is settled before the first
request.
"""

from collections.abc import Callable
from typing import Literal

import torch

from griffin.engine.pending import Timer

# A limit that was measured is one of these, or 0. They lie so far apart that two starts on one machine rarely differ.
STEPS = (16, 32, 48, 64, 96, 128)
# The numbers of tokens that are timed. The first one is one pass.
FEW, MANY = 16, 64
# Each is timed so often, or until that has taken so many seconds.
TIMES, ENOUGH_S = 3, 0.5
# Passes must promise to be so many times as fast.
MARGIN = 1.1


class PassLimit:
    """Up to how many tokens a chunk of a prompt is read in the decoder's passes. One for all engines of a model.

    tokens: the limit; 0 reads every prompt through the model's own code.
    settled: whether it stays.
    """

    def __init__(self, tokens: int | Literal["auto"] = 0) -> None:
        """
        Args:
            tokens: auto is 0 until it is settled.

        Raises:
            ValueError: a negative number.
        """
        if tokens != "auto" and tokens < 0:
            raise ValueError(f"pass_tokens must be auto, or 0 or more, but is {tokens}")
        self.tokens, self.settled = (0, False) if tokens == "auto" else (tokens, True)

    def settle(self, tokens: int) -> None:
        self.tokens, self.settled = tokens, True


def measured(by_passes: Callable[[int], object], by_model: Callable[[int], object], device: torch.device) -> int:
    """The limit, from timing both ways.

    Args:
        by_passes, by_model: each reads so many tokens from an empty cache.
        device: where they read.
    """
    few, many = (_fastest(lambda tokens=tokens: by_model(tokens), device) for tokens in (FEW, MANY))  # type: ignore[misc]
    return longest(_fastest(lambda: by_passes(FEW), device), few, many)


def longest(one_pass: float, few: float, many: float) -> int:
    """The largest step up to which passes are faster, or 0.

    Args:
        one_pass: seconds that a pass of ``FEW`` tokens takes.
        few, many: seconds that the model's own code takes for ``FEW`` and ``MANY`` tokens. Other numbers of tokens
            are taken to lie on the line through both.
    """
    found, each = 0, max(0.0, many - few) / (MANY - FEW)
    for tokens in STEPS:
        if MARGIN * one_pass * tokens / FEW > few + each * (tokens - FEW):
            break
        found = tokens
    return found


def _fastest(read: Callable[[], object], device: torch.device) -> float:
    """In seconds. The first time is often slower, and another process may take a processor for a moment."""
    times: list[float] = []
    while len(times) < TIMES and sum(times) < ENOUGH_S:
        timer = Timer(device)
        read()
        timer.stop()
        times.append(timer.seconds())
    return min(times)
