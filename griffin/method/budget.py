"""How method griffin+ divides a request's budget: the share of each FF matrix that a token reads, by sparsity.

Found by a search on texts on which no result is reported; see docs/log/griffin_plus.md.
"""

from itertools import pairwise

from griffin.thresholds import Shares

# Sparsity, and the shares of W_g, W_u and W_d, linear between rows. The mean of the shares is 1 - sparsity.
GATED = (
    (0.0, (1.0, 1.0, 1.0)),
    (0.1, (0.92, 0.96, 0.82)),
    (0.25, (0.77, 0.86, 0.62)),
    (0.5, (0.56, 0.61, 0.33)),
    (0.6, (0.49, 0.46, 0.25)),
    (0.75, (0.36, 0.26, 0.13)),
    (0.9, (0.16, 0.09, 0.05)),
    (1.0, (0.0, 0.0, 0.0)),
)
# Without a gate: the shares of W_1 and W_d. A first guess, found on a gated model without its gates.
PLAIN = (
    (0.0, (1.0, 1.0)),
    (0.1, (0.94, 0.86)),
    (0.25, (0.84, 0.66)),
    (0.5, (0.61, 0.39)),
    (0.75, (0.35, 0.15)),
    (0.9, (0.15, 0.05)),
    (1.0, (0.0, 0.0)),
)


def shares(sparsity: float, *, gated: bool) -> Shares:
    """The shares of each matrix that a token reads at a sparsity, 0 <= sparsity < 1."""
    if gated:
        return Shares(*_between(GATED, sparsity))
    first, down = _between(PLAIN, sparsity)
    return Shares(first, first, down)


def _between(rows: tuple[tuple[float, tuple[float, ...]], ...], sparsity: float) -> list[float]:
    for (left, before), (right, after) in pairwise(rows):
        if sparsity <= right:
            part = (sparsity - left) / (right - left)
            return [a + part * (b - a) for a, b in zip(before, after, strict=True)]
    raise ValueError(f"sparsity must be below 1, but is {sparsity}")
