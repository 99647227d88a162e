"""Ridge: the output of the removed neurons, predicted from the activations of the kept ones.

A ridge regression over the latest tokens of the prompt and over principal directions of general text. The prediction is
linear in the kept activations, so it is added to their rows of the second projection: W_k + C, where

    C = (X_k' X_k + N)^-1 X_k' X_r W_r = N^-1 X_k' (X_k N^-1 X_k' + 1)^-1 X_r W_r,

X has a row for each token or direction, columns k are kept and r removed. A token's row is (z - mean) / sqrt||z||. N is
diagonal: the penalty, and the part of a neuron's variance that the directions do not explain. The right-hand form
inverts a matrix of as many rows as X, and gives C as a product of that rank.

Shapes: L layers, T tokens, P directions, R = T + P rows, F feed-forward neurons, k of them kept, D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import Activations, centred_rows
from griffin.model.families import FeedForward
from griffin.neurons import Correction

# The tokens of a prompt that the regression uses.
LATEST_TOKENS = 128
# General text counts as this many tokens beside a prompt's.
PRIOR_TOKENS = 1024
# The penalty as a multiple of a neuron's variance, with general text and without.
PENALTY, PENALTY_ALONE = 0.1, 2.0
# This multiple of the mean variance is added to each neuron's own: a neuron that hardly moved predicts nothing.
LEAST = 0.1


def predict(
    blocks: Sequence[FeedForward],
    layers: Sequence[Tensor],
    mean_LF: Tensor,
    latest: Sequence[Activations],
    tokens: int,
    calibration: Calibration,
    *,
    prior: bool,
) -> tuple[Correction, Tensor]:
    """
    Args:
        layers: for each layer the kept neurons, int64 ``(k,)``.
        mean_LF: the mean activations.
        latest: for each layer, activations of the prompt's latest tokens; empty if there are none.
        tokens: how many tokens the prompt has, without its first.
        prior: use general text.

    Returns:
        C, and an offset for each layer's output, fp32 ``(L, D)``. Together they keep the output's mean as it was.
    """
    seen = max(1, tokens)
    share = seen / (seen + PRIOR_TOKENS) if prior else 1.0
    unexplained_LF = (1 - share) * calibration.unexplained_LF if prior else torch.zeros_like(mean_LF)
    penalty = PENALTY if prior else PENALTY_ALONE
    latest = latest or [Activations(mean_LF.new_empty(0, mean_LF.shape[1]))] * len(blocks)
    left, grams, given, means = [], [], [], []
    for layer, (block, kept_k) in enumerate(zip(blocks, layers, strict=True)):
        mean_F, unexplained_F = mean_LF[layer], unexplained_LF[layer]
        x_RF = share**0.5 * centred_rows(latest[layer].z.to(mean_F.device), mean_F)
        if prior:
            x_RF = torch.cat([x_RF, (1 - share) ** 0.5 * calibration.directions_LPF[layer].float()])
        x_Rk = x_RF.index_select(1, kept_k)
        variance_k = x_Rk.square().sum(dim=0) + unexplained_F[kept_k]
        noise_k = penalty * (variance_k + LEAST * variance_k.mean()) + unexplained_F[kept_k]
        left.append((x_Rk / noise_k.clamp_min(torch.finfo(torch.float32).tiny)).t())
        grams.append(x_Rk @ left[-1])
        # The mean is one more row: it needs the same product.
        given.append(_through(block, torch.cat([x_RF, mean_F[None]]), kept_k))
        means.append(mean_F[kept_k] @ left[-1])
    given_LRD = torch.stack(given)
    gram_LRR = torch.stack(grams)
    gram_LRR.diagonal(dim1=1, dim2=2).add_(1)
    # Without the check, which would wait for the device: a sum with the identity is always positive definite.
    # The inverse is as exact here as solving with the factor, which takes far longer on a CPU.
    factor_LRR = torch.linalg.cholesky_ex(gram_LRR).L
    right_LRD = torch.cholesky_inverse(factor_LRR) @ given_LRD[:, :-1]
    offset_LD = given_LRD[:, -1] - (torch.stack(means)[:, None] @ right_LRD)[:, 0]
    return _correction(left, right_LRD, blocks[0].down.dtype), offset_LD


def _correction(left: Sequence[Tensor], right_LRD: Tensor, dtype: torch.dtype) -> Correction:
    """The two factors, scaled so that half precision can hold them: left is large for neurons that hardly move."""
    scales = [left_kR.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) for left_kR in left]
    return Correction(
        [(left_kR / scale).to(dtype) for left_kR, scale in zip(left, scales, strict=True)],
        [(right_RD * scale).to(dtype) for right_RD, scale in zip(right_LRD, scales, strict=True)],
    )


def _through(block: FeedForward, x_RF: Tensor, kept_k: Tensor) -> Tensor:
    """The output of the removed neurons for these rows of activations: fp32 ``(R, D)``."""
    removed_F = torch.ones(x_RF.shape[1], dtype=torch.bool, device=x_RF.device).index_fill_(0, kept_k, False)
    removed = removed_F.nonzero()[:, 0]
    rows_rD = block.down.rows(removed).dense()
    x_Rr = x_RF.index_select(1, removed)
    # Many processors multiply matrices of half precision several times slower; CUDA devices do not.
    return x_Rr @ rows_rD.float() if x_RF.device.type == "cpu" else (x_Rr.to(rows_rD) @ rows_rD).to(x_RF)
