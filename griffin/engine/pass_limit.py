"""PassLimit: which prompts the decoder's passes read, and which the model's own code reads.

The model's own code needs much time for its weights, even for few tokens. Passes are faster for few tokens and slower
for many. The two round differently. So all engines of a model share one limit, settled before the first request.
"""

import logging
import time
from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from griffin.engine.pending import Timer

logger = logging.getLogger("griffin")

# A measured limit is one of these, or 0. Their distances are so large that two starts on one machine rarely differ.
STEPS = (16, 32, 64, 128)
# Numbers of tokens that are timed. The first number is one pass.
FEW, MANY = 16, 128
# Each is timed so often, or for so many seconds.
TIMES, ENOUGH_S = 4, 0.6
# If other processes use the processors, threads wait for each other, and the library's threads wait much longer. A time
# counts only if the threads ran for this share of it.
RAN = 0.85
# The limit on a machine that is too busy to measure. There the library's threads wait for each other: 128 tokens of a
# 1.5B took 2 to 12 s in place of 1.3, and passes twice their time. On a quiet machine the limit loses a fifth at most.
BUSY = 64
# Passes must be expected to be so many times as fast.
MARGIN = 1.1


class PassLimit:
    """The most tokens of a prompt chunk that the decoder's passes read. All engines of a model share it.

    tokens: the limit; 0: the model's own code reads every prompt.
    settled: whether it is final.
    LARGEST_MEASURED: the largest limit that auto chooses.
    """

    LARGEST_MEASURED: ClassVar = STEPS[-1]

    def __init__(self, tokens: int | Literal["auto"] = 0) -> None:
        """
        Args:
            tokens: auto counts as 0 until it is settled.

        Raises:
            ValueError: the number is negative.
        """
        if tokens != "auto" and tokens < 0:
            raise ValueError(f"pass_tokens must be auto, or 0 or more, but is {tokens}")
        self.tokens, self.settled = (0, False) if tokens == "auto" else (tokens, True)

    def settle(self, tokens: int) -> None:
        self.tokens, self.settled = tokens, True


def measured(by_passes: Callable[[int], object], by_model: Callable[[int], object], device: torch.device) -> int:
    """The limit, found by timing both ways. If other processes use the processors, it is ``BUSY``.

    Args:
        by_passes, by_model: read a number of tokens from an empty cache.
        device: where they read.
    """
    times: list[float] = []
    for read, tokens in ((by_passes, FEW), (by_model, FEW), (by_model, MANY)):
        fastest = _fastest(read, tokens, device)
        if fastest is None:
            logger.debug("other processes use the processors: --prompt-pass-tokens auto is %d, not measured", BUSY)
            return BUSY
        times.append(fastest)
    return longest(*times)


def longest(one_pass: float, few: float, many: float) -> int:
    """The largest step up to which passes are faster, or 0.

    Args:
        one_pass: seconds that a pass of ``FEW`` tokens takes.
        few, many: seconds that the model's own code takes for ``FEW`` and ``MANY`` tokens. Times of other numbers are
            assumed to lie on the line through both.
    """
    found, each = 0, max(0.0, many - few) / (MANY - FEW)
    for tokens in STEPS:
        if MARGIN * one_pass * tokens / FEW > few + each * (tokens - FEW):
            break
        found = tokens
    return found


def _fastest(read: Callable[[int], object], tokens: int, device: torch.device) -> float | None:
    """The time in seconds; None if other processes used the processors each time. The first time is often slower."""
    good: list[float] = []
    spent, tries = 0.0, 0
    while tries < TIMES and spent < ENOUGH_S:
        timer, began = Timer(device), time.process_time()
        read(tokens)
        timer.stop()
        ran, seconds = time.process_time() - began, timer.seconds()
        if device.type != "cpu" or ran > RAN * torch.get_num_threads() * seconds:
            good.append(seconds)
        spent, tries = spent + seconds, tries + 1
    return min(good, default=None)
