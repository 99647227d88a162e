"""When requests start in an open loop: drawn from the seed before anything is sent. No I/O."""

import random
from collections.abc import Iterator


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the beginning, the first at 0, with exponential gaps of ``1 / rate`` on average; without end."""
    gaps, due = random.Random(seed), 0.0
    while True:
        yield due
        due += gaps.expovariate(rate)
