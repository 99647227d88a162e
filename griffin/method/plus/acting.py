"""Which of the kept neurons act on a token: those whose activation function gives enough. The others rest.

A neuron whose gate is nearly shut gives next to nothing, and the gate alone shows it. So more neurons are kept than a
token may read, and for those with the lowest gates only the gate is read (CATS: Lee et al. 2024). The measure is
|activation(gate)| times the neuron's reach, the usual size of its up projection. Each layer has a threshold of its own,
which lets the same fraction of its neurons act on the latest tokens of the prompt. A block without a gate knows after
its one expanding projection, and saves the contracting one.

Shapes: L layers, T tokens, F feed-forward neurons, k of them kept, D model width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import Activations
from griffin.model.families import FeedForward
from griffin.neurons import Acting, Correction

# The fraction of the kept neurons that act on a token, where there are enough of them.
ACTING = 7 / 16
# A threshold is found on so many of the tokens, evenly spaced: each has as many values as there are neurons.
CUT_TOKENS = 32
# On a shorter prompt no neuron rests: as many are kept as may be read.
FEWEST_TOKENS = 8
# The mean of a resting neuron counts this many tokens with the value 0 besides, because few tokens make a poor mean.
FEW_TOKENS = 4


def shares(read: float, gate: float) -> tuple[float, float]:
    """The fraction of all neurons to keep, and the fraction of these to act, so that a token reads ``read`` of all.

    Args:
        gate: the fraction of a neuron's weights that shows whether it acts.
    """
    kept = min(1.0, read / (gate + (1 - gate) * ACTING))
    return kept, (read / kept - gate) / (1 - gate)


def find(
    layers: Sequence[Tensor], latest: Sequence[Activations], calibration: Calibration, share: float, *, replaces: bool
) -> Acting:
    """Thresholds that let a fraction of the kept neurons act.

    Args:
        layers: for each layer the kept neurons, int64 ``(k,)``.
        latest: activations of each layer's latest tokens, at least one.
        share: the fraction of the kept neurons that acts on a token.
        replaces: replace a resting neuron by its mean over the prompt tokens where it rested; otherwise by 0.
    """
    thresholds, resting, order = [], [], []
    for kept_k, known, reach_F in zip(layers, latest, calibration.reach_LF, strict=True):
        own = known.of(kept_k)
        given_Tk = own.given.float()
        reach_k = reach_F[kept_k].to(given_Tk).clamp_min(torch.finfo(torch.float32).tiny)
        worth_Tk = given_Tk.abs() * reach_k
        cut = _cut(worth_Tk[:: math.ceil(len(worth_Tk) / CUT_TOKENS)], 1 - share)
        highest = torch.finfo(torch.float32).max
        thresholds.append((cut / reach_k).clamp_max(highest).to(reach_F.device))
        rests_Tk = worth_Tk <= cut
        sum_k = (own.z.float() * rests_Tk).sum(dim=0)
        resting_k = sum_k / (rests_Tk.sum(dim=0) + FEW_TOKENS) if replaces else torch.zeros_like(sum_k)
        resting.append(resting_k.to(reach_F.device))
        order.append(rests_Tk.sum(dim=0).argsort(stable=True).to(reach_F.device))
    return Acting(thresholds, resting, order, round(share * sum(map(len, layers))))


def _cut(worth_Tk: Tensor, resting: float) -> Tensor:
    """The value that the fraction ``resting`` of these values does not exceed."""
    count = round(resting * worth_Tk.numel())
    return worth_Tk.flatten().kthvalue(count).values if count else worth_Tk.new_zeros(())


def given_at_rest(
    blocks: Sequence[FeedForward], layers: Sequence[Tensor], acting: Acting, correction: Correction | None
) -> Tensor:
    """The output of each layer's kept neurons when all of them rest: fp32 ``(L, D)``."""
    given = []
    for layer, (block, kept_k, resting_k) in enumerate(zip(blocks, layers, acting.resting, strict=True)):
        rows = block.down.rows(kept_k)
        given_D = rows.weighted_rows(resting_k.to(rows.device, rows.dtype))
        if correction is not None:
            left_kR, right_RD = correction.left[layer], correction.right[layer]
            given_D = given_D + (resting_k.to(left_kR) @ left_kR @ right_RD).to(given_D)
        given.append(given_D.to(resting_k))
    return torch.stack(given)
