"""Regression: the losses measured on a user's prompts become the table that sparsity "auto" uses.

The logarithm of a KL divergence is a linear function of three logarithms. They are those of the prompt length, of the
place in the answer, and of the worth of the removed neurons (see ``griffin.method.auto``). A longer prompt cannot harm.
A later place, or more removed worth, cannot help. So a power of the wrong sign is chance, and is left out.

Shapes: N measurements, C coefficients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin.experiments.tune.advice import FEWEST_PROMPTS
from griffin.experiments.tune.losses import Loss
from griffin.method.auto import LEAST_REMOVED, LossTable

# The prompts are split into this many parts. Each is left out in turn, and predicted from the others.
FOLDS = 5
# A smaller divergence of a token is rounding.
LEAST_DIVERGENCE = 1e-6
# The possible signs of the powers of length, position and removed.
SIGNS = (-1, 1, 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss of one prompt at one sparsity.

    prompt: the name of the whole prompt, even if it is cut.
    prompt_tokens: its length after the cut.
    """

    prompt: str
    prompt_tokens: int
    sparsity: float
    loss: Loss


@dataclass(frozen=True, slots=True)
class _Fit:
    """constants: one for each sparsity. powers: of length, position and removed."""

    constants: list[float]
    powers: list[float]


def fit(measured: Sequence[Measured], method: str) -> LossTable | None:
    """The table for a method. None if there are too few prompts, or if no prompt has a loss."""
    # If a sparsity rounds to no neuron, its loss is 0, which has no logarithm.
    measured = [one for one in measured if one.loss.divergence > LEAST_DIVERGENCE * one.loss.tokens]
    prompts = sorted({one.prompt for one in measured})
    sparsities = sorted({one.sparsity for one in measured})
    if len(prompts) < FEWEST_PROMPTS:
        return None
    whole = _fit(measured, sparsities)
    errors: list[float] = []
    for fold in range(FOLDS):
        left_out = set(prompts[fold::FOLDS])
        others = _fit([one for one in measured if one.prompt not in left_out], sparsities)
        own = [one for one in measured if one.prompt in left_out]
        errors += _residuals(own, sparsities, others).tolist()
    lengths = [one.prompt_tokens for one in measured]
    length, position, removed = whole.powers
    return LossTable(
        method=method,
        sparsities=sparsities,
        constants=whole.constants,
        length=length,
        position=position,
        removed=removed,
        prompt_tokens=[min(lengths), max(lengths)],
        least_removed=[min(_removed(one) for one in measured if one.sparsity == sparsity) for sparsity in sparsities],
        # The first token of each answer is not judged, because it is always the full model's.
        tokens=1 + max(one.loss.tokens for one in measured),
        spread=math.sqrt(sum(error**2 for error in errors) / len(errors)),
        prompts=len(prompts),
    )


def sentence(table: LossTable | None) -> str:
    """For the user: whether a table was kept, and how good it is."""
    if table is None:
        return f"Sparsity auto needs at least {FEWEST_PROMPTS} prompts: nothing was kept for it."
    return (
        f"Kept for sparsity auto, with method {table.method}: losses of {table.prompts} prompts. Predicted from the "
        f"other prompts, each is right within a factor of {math.exp(table.spread):.1f} (one standard deviation)."
    )


def _fit(measured: Sequence[Measured], sparsities: Sequence[float]) -> _Fit:
    used = list(range(len(SIGNS)))
    while True:
        rows_NC, logs_N = _rows(measured, sparsities)
        columns = [*range(len(sparsities)), *(len(sparsities) + power for power in used)]
        # The least-squares solution with the smallest norm. If all prompts have the same length, its power is 0.
        found_C = torch.linalg.lstsq(rows_NC[:, columns], logs_N[:, None], driver="gelsd").solution[:, 0]
        powers = [0.0] * len(SIGNS)
        for power, value in zip(used, found_C[len(sparsities) :].tolist(), strict=True):
            powers[power] = value
        wrong = [power for power in used if powers[power] * SIGNS[power] < 0]
        if not wrong:
            break
        used.remove(max(wrong, key=lambda power: abs(powers[power])))
    fitted = _Fit(found_C[: len(sparsities)].tolist(), powers)
    # Correct the constants, so that the mean of the divergences is right, not the mean of their logarithms.
    bias = float(_residuals(measured, sparsities, fitted).exp().mean().log())
    return _Fit([constant + bias for constant in fitted.constants], powers)


def _residuals(measured: Sequence[Measured], sparsities: Sequence[float], found: _Fit) -> Tensor:
    """Measured minus fitted logarithms: fp64 ``(N,)``."""
    rows_NC, logs_N = _rows(measured, sparsities)
    return logs_N - rows_NC @ torch.tensor([*found.constants, *found.powers], dtype=torch.float64)


def _removed(one: Measured) -> float:
    return max(one.loss.removed / one.loss.tokens, LEAST_REMOVED)


def _rows(measured: Sequence[Measured], sparsities: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Inputs ``(N, C)`` and logarithms ``(N,)``. Each loss gives two rows, one for each half of its answer."""
    rows, logs = [], []
    for one in measured:
        loss = one.loss
        early = loss.tokens - loss.late_tokens
        halves = (
            (early, loss.divergence - loss.late_divergence, early / 2),
            (loss.late_tokens, loss.late_divergence, early + loss.late_tokens / 2),
        )
        for tokens, divergence, place in halves:
            if tokens and divergence > LEAST_DIVERGENCE * tokens:
                at = [float(one.sparsity == sparsity) for sparsity in sparsities]
                rows.append([*at, math.log(one.prompt_tokens), math.log(max(place, 0.5)), math.log(_removed(one))])
                logs.append(math.log(divergence / tokens))
    shape = len(rows), len(sparsities) + len(SIGNS)
    return torch.tensor(rows, dtype=torch.float64).reshape(shape), torch.tensor(logs, dtype=torch.float64)
