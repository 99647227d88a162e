"""Strategies: ways to pick k neurons by a statistic. Each returns sorted indices for each layer.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from griffin.request import StrategyName

Strategy = Callable[[Tensor, int, Generator], Tensor]


def top_k(statistic_LF: Tensor, k: int, generator: Generator) -> Tensor:
    """The k highest of each row; among equals, those with the lower index come first. Sorted, int64 ``(L, k)``."""
    return _indices(_highest(statistic_LF, k), k)


def sample(statistic_LF: Tensor, k: int, generator: Generator) -> Tensor:
    """k neurons drawn without replacement, weighted by the statistic (paper, 5.3). Sorted, int64 ``(L, k)``."""
    return _indices(_highest(_race(statistic_LF, generator), k), k)


def top_k_sample(statistic_LF: Tensor, k: int, generator: Generator) -> Tensor:
    """Half of k by rank, the rest drawn from the others, weighted by the statistic (paper, 5.3). int64 ``(L, k)``."""
    ranked = _highest(statistic_LF, (k + 1) // 2)
    drawn = _highest(_race(statistic_LF, generator).masked_fill(ranked, -1.0), k - (k + 1) // 2)
    return _indices(ranked | drawn, k)


STRATEGIES: dict[StrategyName, Strategy] = {"top_k": top_k, "sample": sample, "top_k_sample": top_k_sample}


def _race(weights_LF: Tensor, generator: Generator) -> Tensor:
    # The k largest of w / Exp(1) are a weighted draw without replacement (Efraimidis and Spirakis, 2006).
    # Drawn on the CPU, so that a seed picks the same neurons on every device.
    exponentials = torch.empty(weights_LF.shape).exponential_(generator=generator)
    return weights_LF / exponentials.to(weights_LF.device)


def _highest(scores_LF: Tensor, k: int) -> Tensor:
    if k == 0:
        return torch.zeros_like(scores_LF, dtype=torch.bool)
    # Even with a broken activation (NaN), a row must have k neurons.
    scores_LF = scores_LF.nan_to_num(nan=0.0)
    # Finding only the k-th highest is several times faster than finding all k.
    cut_L1 = scores_LF.kthvalue(scores_LF.shape[1] - k + 1, dim=1, keepdim=True).values
    above = scores_LF > cut_L1
    equal = scores_LF == cut_L1
    missing_L1 = k - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= missing_L1))


def _indices(mask_LF: Tensor, k: int) -> Tensor:
    if mask_LF.device.type == "cpu":
        return mask_LF.nonzero()[:, 1].view(-1, k)
    # nonzero would make the host wait for a count that is known here.
    width = mask_LF.shape[1]
    numbers_LF = torch.arange(width, device=mask_LF.device).masked_fill(~mask_LF, width)
    return numbers_LF.sort(dim=1).values[:, :k].contiguous()
