"""Gating: which of the kept neurons act on a token, by what their activation functions give for it.

A neuron whose gate is nearly shut gives next to nothing, and the gate alone tells. So more neurons are kept than are to
be read, and of those whose gates give least for a token only the gate is read (CATS: Lee et al. 2024). What decides is
|activation(gate)| times the neuron's reach, how large its up projection usually is. The threshold is each layer's own:
it lets the same part of the neurons act in all of them, by the latest tokens of the prompt. Blocks without a gate
know after their one expanding projection, and save the contracting one.

Shapes: L layers, T tokens, F feed-forward neurons, k of them kept, D model width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import Activations
from griffin.model.families import FeedForward
from griffin.neurons import Correction, Gating

# Of the kept neurons, where there are enough: how many act on a token.
ACTING = 7 / 16
# A threshold goes by so many of the tokens, evenly from all: with each come as many values as there are neurons.
CUT_TOKENS = 32
# Of a shorter prompt, as many neurons are kept as are to be read, and act on every token.
FEWEST_TOKENS = 8
# Tokens at rest that count besides, with nothing: a mean of few tokens is little to go by.
FEW_TOKENS = 4


def shares(read: float, gate: float) -> tuple[float, float]:
    """Which part of all neurons to keep, and which part of these is to act, so that a token reads that part of all.

    Args:
        gate: the part of a neuron's weights that tells whether it acts.
    """
    kept = min(1.0, read / (gate + (1 - gate) * ACTING))
    return kept, (read / kept - gate) / (1 - gate)


def gate(
    experts: Sequence[Tensor], latest: Sequence[Activations], calibration: Calibration, acting: float, *, rest: bool
) -> Gating:
    """
    Args:
        experts: for each layer the kept neurons, int64 ``(k,)``.
        latest: activations of each layer's latest tokens, at least one.
        acting: the part of the kept neurons that is to act on a token.
        rest: have neurons at rest give what they gave on the prompt when they would have rested, and nothing otherwise.
    """
    thresholds, resting, order = [], [], []
    for experts_k, known, reach_F in zip(experts, latest, calibration.reach_LF, strict=True):
        own = known.of(experts_k)
        given_Tk = own.given.float()
        reach_k = reach_F[experts_k].to(given_Tk).clamp_min(torch.finfo(torch.float32).tiny)
        worth_Tk = given_Tk.abs() * reach_k
        cut = _cut(worth_Tk[:: math.ceil(len(worth_Tk) / CUT_TOKENS)], 1 - acting)
        highest = torch.finfo(torch.float32).max
        thresholds.append((cut / reach_k).clamp_max(highest).to(reach_F.device))
        rests_Tk = worth_Tk <= cut
        sum_k = (own.z.float() * rests_Tk).sum(dim=0)
        resting_k = sum_k / (rests_Tk.sum(dim=0) + FEW_TOKENS) if rest else torch.zeros_like(sum_k)
        resting.append(resting_k.to(reach_F.device))
        order.append(rests_Tk.sum(dim=0).argsort(stable=True).to(reach_F.device))
    return Gating(thresholds, resting, order, round(acting * sum(map(len, experts))))


def _cut(worth_Tk: Tensor, resting: float) -> Tensor:
    """What that part of these values does not exceed."""
    count = round(resting * worth_Tk.numel())
    return worth_Tk.flatten().kthvalue(count).values if count else worth_Tk.new_zeros(())


def given_at_rest(
    blocks: Sequence[FeedForward], experts: Sequence[Tensor], gating: Gating, correction: Correction | None
) -> Tensor:
    """What each layer's kept neurons give when all of them rest: fp32 ``(L, D)``."""
    given = []
    for layer, (block, experts_k, resting_k) in enumerate(zip(blocks, experts, gating.resting, strict=True)):
        kept = block.down.rows(experts_k)
        given_D = kept.weighted_rows(resting_k.to(kept.device, kept.dtype))
        if correction is not None:
            left_kR, right_RD = correction.left[layer], correction.right[layer]
            given_D = given_D + (resting_k.to(left_kR) @ left_kR @ right_RD).to(given_D)
        given.append(given_D.to(resting_k))
    return torch.stack(given)
