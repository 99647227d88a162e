"""Method griffin+: the same number of neurons as the paper's method, chosen and replaced so that the loss grows less.

A neuron that is gone is replaced by its mean activation, so what is lost with it is its variance; how much the loss
minds that is its sensitivity, see ``calibration``. Variance times sensitivity estimates, to second order, the loss
that removing a neuron brings (as optimal brain damage does for weights: LeCun, Denker, Solla 1989). These estimates
are comparable between layers: one ranking over all layers spends the neurons where they matter most.

Shapes: L layers, F feed-forward neurons, D model width.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from griffin.calibration import Calibration
from griffin.families import FeedForward, linear_weight
from griffin.statistic import FlockingStatistic, Moments

PartName = Literal["score", "budget", "compensation", "prior"]
PARTS: tuple[PartName, ...] = get_args(PartName)
# General text counts as that many tokens of a prompt.
PRIOR_TOKENS = 128
# Each layer keeps at least that part of its neurons.
FLOOR = 0.1


def activations(statistic: FlockingStatistic, calibration: Calibration, prior: bool) -> Moments:
    """What is known of the neurons on a prompt; with ``prior``, or if the prompt shows nothing, by general text too."""
    found = statistic.moments()
    return found + calibration.moments(PRIOR_TOKENS) if prior or not found.tokens else found


def over_all_layers(score_LF: Tensor, count: int, floor: int) -> Tensor:
    """A mask of the ``count`` highest of all layers together, at least ``floor`` of each layer."""
    # Those that every layer keeps anyway come first.
    raised_LF = score_LF.scatter(1, score_LF.topk(floor, dim=1, sorted=False).indices, torch.inf)
    chosen = raised_LF.flatten().topk(count, sorted=False).indices
    return torch.zeros_like(score_LF, dtype=torch.bool).flatten().index_fill_(0, chosen, True).view_as(score_LF)


def offsets(blocks: Sequence[FeedForward], removed_LF: Tensor, mean_LF: Tensor) -> Tensor:
    """What the removed neurons give on average, fp32 ``(L, D)``: in each layer their means through W_2's columns."""
    found = []
    for block, means_F in zip(blocks, mean_LF * removed_LF, strict=True):
        weight_DF = linear_weight(block.contract)
        found.append((weight_DF @ means_F.to(weight_DF)).to(mean_LF))
    return torch.stack(found)
