"""Ridge: what the removed neurons would have given is predicted from what the kept ones give, and from the input.

A regression by the latest tokens of the prompt and, standing for general text, some of its principal directions. The
prediction is linear in the kept activations, so it goes into their rows of the second projection: W_k + C, where

    C = (X_k' X_k + N)^-1 X_k' X_r W_r = N^-1 X_k' (X_k N^-1 X_k' + 1)^-1 X_r W_r,

X has a row for each token or direction, columns k are kept and r removed. A token's row is (z - mean) / sqrt||z||. N is
diagonal, the penalty and what the directions leave of a neuron's variance. The right-hand form needs no matrix larger
than there are rows, and leaves C as a product of that rank.

A few directions of the block's input stand beside the neurons as if they were more of them, always kept, whose rows of
the second projection are zero. What the kept neurons leave is to a good part linear in the input, see ``inputs``.

Shapes: L layers, T tokens, P directions of general text, R = T + P rows, F feed-forward neurons, k of them kept,
I input directions, N = F + I, m = k + I, D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.calibration import Calibration
from griffin.families import FeedForward, linear_weight
from griffin.kept import Correction
from griffin.statistic import FlockingStatistic, centred_rows, inverse_lengths

# Of a prompt.
LATEST_TOKENS = 128
# General text counts as that many tokens beside a prompt's.
PRIOR_TOKENS = 1024
# The penalty, of a neuron's variance; larger where nothing but the prompt is known.
PENALTY, PENALTY_ALONE = 0.1, 2.0
# Of all neurons' mean variance, added to a neuron's own: one that hardly moved predicts nothing.
LEAST = 0.1


def predict(
    blocks: Sequence[FeedForward],
    experts: Sequence[Tensor],
    mean_LF: Tensor,
    statistic: FlockingStatistic,
    calibration: Calibration,
    *,
    prior: bool,
    inputs: Sequence[Tensor] = (),
) -> tuple[Correction, Tensor]:
    """
    Args:
        experts: for each layer the kept neurons, int64 ``(k,)``.
        mean_LF: what activations are taken to be on average.
        prior: use general text.
        inputs: the calibration's, in the weights' dtype, to go by these directions of the blocks' inputs too.

    Returns:
        C, and what is to be added to each layer's output besides, fp32 ``(L, D)``: its mean is then what it was.
    """
    seen = max(1, statistic.moments().tokens)
    share = seen / (seen + PRIOR_TOKENS) if prior else 1.0
    penalty = PENALTY if prior else PENALTY_ALONE
    latest, width = statistic.latest(), mean_LF.shape[1]
    columns = width + (len(inputs[0]) if inputs else 0)
    left, grams, given, means = [], [], [], []
    for layer, (block, experts_k) in enumerate(zip(blocks, experts, strict=True)):
        mean_F = mean_LF[layer]
        seen_TN = latest[layer][:, :columns].to(mean_F.device) if latest else mean_F.new_empty(0, columns)
        mean_N = mean_F if columns == width else torch.cat([mean_F, _input_mean(seen_TN, calibration, layer, prior)])
        x_RN = share**0.5 * centred_rows(seen_TN, mean_N, width)
        unexplained_N = torch.zeros_like(mean_N)
        if prior:
            x_RN = torch.cat([x_RN, (1 - share) ** 0.5 * calibration.directions_LPN[layer, :, :columns].float()])
            unexplained_N = (1 - share) * calibration.unexplained_LN[layer, :columns]
        staying_m = torch.cat([experts_k, torch.arange(width, columns, device=experts_k.device)])
        x_Rm, unexplained_m = x_RN.index_select(1, staying_m), unexplained_N[staying_m]
        variance_m = x_Rm.square().sum(dim=0) + unexplained_m
        noise_m = penalty * (variance_m + LEAST * variance_m.mean()) + unexplained_m
        left.append((x_Rm / noise_m.clamp_min(torch.finfo(torch.float32).tiny)).t())
        grams.append(x_Rm @ left[-1])
        # The mean goes the same way as the rows, as one more of them.
        rows_RF = torch.cat([x_RN[:, :width], mean_F[None]])
        given.append(given_by_removed(rows_RF, linear_weight(block.contract), experts_k))
        means.append(mean_N[staying_m] @ left[-1])
    given_LRD = torch.stack(given)
    gram_LRR = torch.stack(grams)
    gram_LRR.diagonal(dim1=1, dim2=2).add_(1)
    # The check would wait for the device. Such a sum with the identity is always positive definite, and its inverse as
    # good as a solution with it, which takes far longer on a CPU.
    factor_LRR = torch.linalg.cholesky_ex(gram_LRR).L
    right_LRD = torch.cholesky_inverse(factor_LRR) @ given_LRD[:, :-1]
    offset_LD = given_LRD[:, -1] - (torch.stack(means)[:, None] @ right_LRD)[:, 0]
    return _correction(left, right_LRD, linear_weight(blocks[0].contract).dtype, inputs), offset_LD


def _input_mean(seen_TN: Tensor, calibration: Calibration, layer: int, prior: bool) -> Tensor:
    """Of what the input has in each direction, weighed as activations are: ``(I,)``."""
    width = calibration.width
    inverse_T = inverse_lengths(seen_TN[:, :width].float())
    sum_I, weight = inverse_T @ seen_TN[:, width:].float(), inverse_T.sum()
    if prior or not len(seen_TN):
        # As many tokens of general text as of a prompt's beside it.
        known = LATEST_TOKENS * calibration.weight_L[layer]
        sum_I, weight = sum_I + known * calibration.input_mean_LI[layer], weight + known
    return sum_I / weight.clamp_min(torch.finfo(torch.float32).tiny)


def _correction(left: Sequence[Tensor], right_LRD: Tensor, dtype: torch.dtype, inputs: Sequence[Tensor]) -> Correction:
    """The factors are scaled so that half precision can hold them: of neurons that hardly move, left has large ones."""
    scales = [left_mR.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) for left_mR in left]
    return Correction(
        [(left_mR / scale).to(dtype) for left_mR, scale in zip(left, scales, strict=True)],
        [(right_RD * scale).to(dtype) for right_RD, scale in zip(right_LRD, scales, strict=True)],
        inputs,
    )


def given_by_removed(x_RF: Tensor, weight_DF: Tensor, experts_k: Tensor) -> Tensor:
    """What all but these neurons give, of such rows, through the second projection: fp32 ``(R, D)``."""
    removed_F = torch.ones(x_RF.shape[1], dtype=torch.bool, device=x_RF.device).index_fill_(0, experts_k, False)
    removed = removed_F.nonzero()[:, 0]
    rows_rD = weight_DF.t().index_select(0, removed.to(weight_DF.device))
    given_RD = x_RF.index_select(1, removed).to(weight_DF) @ rows_rD
    return given_RD.to(x_RF)
