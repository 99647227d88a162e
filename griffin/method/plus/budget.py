"""Method griffin+: for as many active parameters as by the paper's method, neurons are chosen, replaced and left out on
single tokens so that the loss grows less.

A neuron that is gone is replaced by its mean activation, and by what the kept ones can tell of it, see ``ridge``. With
its mean in its place, what is lost with it is its variance; how much the loss minds that is its sensitivity, see
``calibration``. Variance times sensitivity estimates, to second order, the loss that removing a neuron brings (as
optimal brain damage does for weights: LeCun, Denker, Solla 1989). These estimates are comparable between layers: one
ranking over all layers spends the neurons where they matter most. More of them are kept than by the paper's method, for
not all act on every token, see ``gating``.

Shapes: L layers, F feed-forward neurons, D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import FlockingStatistic, Moments
from griffin.model.families import FeedForward

# General text counts as that many tokens of a prompt.
PRIOR_TOKENS = 128
# Each layer keeps at least that part of its neurons.
FLOOR = 0.1


def activations(statistic: FlockingStatistic, calibration: Calibration, prior: bool) -> Moments:
    """What is known of the neurons on a prompt; with ``prior``, or if the prompt shows nothing, by general text too."""
    found = statistic.moments()
    return found + calibration.moments(PRIOR_TOKENS) if prior or not found.tokens else found


def budgets(loss_LF: Tensor, count: int) -> list[int]:
    """How many of the ``count`` highest of all layers together are in each layer, which keeps ``FLOOR`` at least."""
    layers, width = loss_LF.shape
    floor = max(1, min(count // layers, round(FLOOR * width)))
    # Those that every layer keeps anyway come first.
    raised_LF = loss_LF.scatter(1, loss_LF.topk(floor, dim=1, sorted=False).indices, torch.inf)
    chosen = raised_LF.flatten().topk(count, sorted=False).indices
    counts: list[int] = (chosen // width).bincount(minlength=layers).tolist()
    return counts


def highest(score_LF: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Of each layer that many neurons, sorted."""
    return [
        score_F.topk(count, sorted=False).indices.sort().values for score_F, count in zip(score_LF, counts, strict=True)
    ]


def offsets(blocks: Sequence[FeedForward], experts: Sequence[Tensor], mean_LF: Tensor) -> Tensor:
    """What the removed neurons give on average, fp32 ``(L, D)``: in each layer their means through W_2's columns."""
    found = []
    for block, experts_k, mean_F in zip(blocks, experts, mean_LF, strict=True):
        removed_F = mean_F.index_fill(0, experts_k, 0).to(block.down.device, block.down.dtype)
        found.append(block.down.weighted_rows(removed_F).to(mean_LF))
    return torch.stack(found)
