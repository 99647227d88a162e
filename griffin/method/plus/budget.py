"""One budget of neurons for all layers, spent where the model's loss would grow most without them.

A removed neuron is replaced by its mean activation, so what is lost is its variance. How much the loss depends on the
neuron is its sensitivity, see ``calibration``. Variance times sensitivity estimates, to second order, the loss that
removing a neuron brings (as optimal brain damage does for weights: LeCun, Denker, Solla 1989). These estimates are
comparable between layers, so one ranking over all layers finds the neurons that matter most.

Shapes: L layers, F feed-forward neurons, D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import FlockingStatistic, Moments
from griffin.model.families import FeedForward

# General text counts as this many tokens of a prompt.
PRIOR_TOKENS = 128
# Each layer keeps at least this fraction of its neurons.
FLOOR = 0.1


def activations(statistic: FlockingStatistic, calibration: Calibration, prior: bool) -> Moments:
    """The neurons' moments on a prompt; with ``prior``, or if the prompt has too few tokens, on general text too."""
    found = statistic.moments()
    return found + calibration.moments(PRIOR_TOKENS) if prior or not found.tokens else found


def budgets(loss_LF: Tensor, count: int) -> list[int]:
    """How many neurons each layer keeps of ``count`` in all, by one ranking; at least the fraction ``FLOOR``."""
    layers, width = loss_LF.shape
    floor = max(1, min(count // layers, round(FLOOR * width)))
    # The neurons that every layer keeps anyway rank first.
    raised_LF = loss_LF.scatter(1, loss_LF.topk(floor, dim=1, sorted=False).indices, torch.inf)
    chosen = raised_LF.flatten().topk(count, sorted=False).indices
    counts: list[int] = (chosen // width).bincount(minlength=layers).tolist()
    return counts


def highest(score_LF: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The highest neurons of each layer, as many as ``counts`` says, sorted: int64 ``(k,)``."""
    return [
        score_F.topk(count, sorted=False).indices.sort().values for score_F, count in zip(score_LF, counts, strict=True)
    ]


def offsets(blocks: Sequence[FeedForward], layers: Sequence[Tensor], mean_LF: Tensor) -> Tensor:
    """The removed neurons' mean output, fp32 ``(L, D)``: their mean activations times their columns of W_2.

    Args:
        layers: for each layer the kept neurons, int64 ``(k,)``.
    """
    found = []
    for block, kept_k, mean_F in zip(blocks, layers, mean_LF, strict=True):
        removed_F = mean_F.index_fill(0, kept_k, 0).to(block.down.device, block.down.dtype)
        found.append(block.down.weighted_rows(removed_F).to(mean_LF))
    return torch.stack(found)
