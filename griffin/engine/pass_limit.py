"""PassLimit: which prompts go through the decoder's passes, and which through the model's own code.

The model's own code takes a while for its weights, however few the tokens are. Passes take less for few tokens, and
more for many. The two round differently. So all engines of a model share one limit, which is settled before the first
request.
"""

import logging
import time
from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from griffin.engine.pending import Timer

logger = logging.getLogger("griffin")

# A limit that was measured is one of these, or 0. They lie so far apart that two starts on one machine rarely differ.
STEPS = (16, 32, 64, 128)
# The numbers of tokens that are timed. The first one is one pass.
FEW, MANY = 16, 128
# Each is timed so often, or until that has taken so many seconds.
TIMES, ENOUGH_S = 4, 0.6
# Where other processes take processors, threads wait for each other, and the library's wait far longer. A time counts
# if the threads ran for so much of it.
RAN = 0.85
# The limit on a machine that is too busy to tell: a single pass is hardly ever slower.
BUSY = 16
# Passes must promise to be so many times as fast.
MARGIN = 1.1


class PassLimit:
    """Up to how many tokens a chunk of a prompt is read in the decoder's passes. One for all engines of a model.

    tokens: the limit; 0 reads every prompt through the model's own code.
    settled: whether it stays.
    LARGEST_MEASURED: auto comes to no more.
    """

    LARGEST_MEASURED: ClassVar = STEPS[-1]

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
    """The limit, from timing both ways. If other processes take the processors, it is ``BUSY``, and that is logged.

    Args:
        by_passes, by_model: each reads so many tokens from an empty cache.
        device: where they read.
    """
    times: list[float] = []
    for read, tokens in ((by_passes, FEW), (by_model, FEW), (by_model, MANY)):
        fastest = _fastest(read, tokens, device)
        if fastest is None:
            logger.info("other processes take the processors, so the limit of short prompts was not measured")
            return BUSY
        times.append(fastest)
    return longest(*times)


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


def _fastest(read: Callable[[int], object], tokens: int, device: torch.device) -> float | None:
    """In seconds; None if other processes took the processors each time. The first time is often slower."""
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
