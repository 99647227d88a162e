"""Arrivals: when requests start in an open loop. They depend only on the seed, not on answers. No I/O."""

import random
from collections.abc import Iterator


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Endless arrivals in seconds, the first at 0. The gaps are exponential, ``1 / rate`` on average."""
    gaps, due = random.Random(seed), 0.0
    while True:
        yield due
        due += gaps.expovariate(rate)
