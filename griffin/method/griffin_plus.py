"""Method griffin+: the prompt fixes thresholds and means, and each token picks with them what it reads.

``griffin.thresholds`` defines the three stages. Here the thresholds are found:

1. An input is ranked by |x_i - m_i| times the norm of its column of W_g.
2. A neuron is ranked by |g_j| times the usual size of its up projection (rms over the prompt).
3. A neuron that passes stage 2 is ranked by |z_j - h_j| times the norm of its row of W_d.

Each layer has one threshold for each stage, which passes the stage's share on the latest tokens of the prompt. h_j is
the mean of z_j over those of these tokens on which the neuron does not pass stage 2. Means leave out the first token
and need two others: for a prompt of up to two tokens m is 0.

Stage 1 without means is WINA's criterion (Chen et al. 2025). Stage 2 is the criterion of CATS (Lee et al. 2024) with
the size of the up projection.

Shapes: L layers, T tokens, D model width, F feed-forward neurons.
"""

from collections.abc import Sequence
from dataclasses import asdict
from math import gcd
from typing import Any

import torch
from torch import Tensor

from griffin.method import budget
from griffin.method.auto import LossTable
from griffin.method.interface import Method
from griffin.method.resting import resting_values
from griffin.method.statistic import Activations, PromptStatistic
from griffin.model.accounting import Accounting
from griffin.request import Pruning
from griffin.thresholds import Thresholds

# Number of last tokens of a prompt on which thresholds and resting values are found.
LATEST_TOKENS = 128
# KL by sparsity: geometric means over 62 prompts of all kinds on four models, see docs/log/griffin_plus.md. Models
# differ from it by a factor of 1.5 to 1.8, prompts of one model by 1.4.
USUAL_LOSSES = {0.25: 0.0138, 0.4: 0.0621, 0.5: 0.136, 0.6: 0.29}
# A threshold is found on about so many values, at even distances.
VALUES = 2**13
# So many sampled values are neighbours: a cache line of the processor, in 16 bits.
RUN = 32
# Relative distance between the threshold and the largest value that does not pass.
MARGIN = 1e-5


class GriffinPlus(Method):
    """Chooses thresholds for what a token reads."""

    name = "griffin+"
    reads_in_place = True
    usual_losses = LossTable.usual("griffin+", USUAL_LOSSES, spread=0.5, prompts=62)

    _norms: tuple[Tensor, Tensor] | None = None

    @classmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        return LATEST_TOKENS

    @classmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        return [cls.name, [asdict(budget.shares(pruning.sparsity, gated=gated)) for gated in (True, False)]]

    @classmethod
    def reads(cls, sparsity: float, accounting: Accounting) -> tuple[int, int]:
        shares = budget.shares(sparsity, gated=accounting.gated)
        return accounting.active_at(shares), accounting.bytes_at(shares)

    def choose(self, statistic: PromptStatistic, pruning: Pruning) -> Thresholds:
        shares = budget.shares(pruning.sparsity, gated=self._gated)
        latest, means_LD, reach_LF = statistic.latest(), statistic.input_means(), statistic.up_sizes()
        activation = self._blocks[0].activation
        if self._gated and not reach_LF.any():
            # The prompt has one token.
            reach_LF = torch.stack([_rms(known.up).to(self._device) for known in latest])
        input_norms_LD, output_norms_LF = self._weight_norms()
        x_LN, of_x_N = self._sample([known.x for known in latest])
        z_LN, of_z_N = self._sample([known.z for known in latest])
        x_LN, z_LN = x_LN.float(), z_LN.float()
        far_LN = (x_LN - means_LD[:, of_x_N]).abs() * input_norms_LD[:, of_x_N]
        if statistic.averaged:
            # The distance of each token from the mean of the others, as it will be for later tokens.
            far_LN *= statistic.averaged / (statistic.averaged - 1)
        input_limits_LD = _limits(cut(far_LN, shares.gate), input_norms_LD)
        if activation is None:
            # Only z itself shows which neurons rest.
            gate_limits_LF = _limits(cut(z_LN.abs() * output_norms_LF[:, of_z_N], shares.down), output_norms_LF)
            rests_LN = torch.zeros_like(z_LN, dtype=torch.bool)
        else:
            # In the model's own dtype, like ``_resting``.
            given_LN = activation(self._sample([known.gate for known in latest])[0]).abs().float()
            gate_limits_LF = _limits(cut(given_LN * reach_LF[:, of_z_N], shares.up), reach_LF)
            rests_LN = given_LN <= gate_limits_LF[:, of_z_N]
        resting_LF = self._resting(latest, gate_limits_LF)
        gives_LN = (z_LN - resting_LF[:, of_z_N]).abs() * output_norms_LF[:, of_z_N]
        output_limits_LF = _limits(cut(gives_LN.masked_fill_(rests_LN, 0), shares.down), output_norms_LF)
        return Thresholds(
            planned=shares,
            means_LD=means_LD,
            input_limits_LD=input_limits_LD,
            offsets_LF=statistic.gate_means(),
            gate_limits_LF=gate_limits_LF if self._gated else None,
            resting_LF=resting_LF,
            output_limits_LF=output_limits_LF,
        )

    def removed(self, statistic: PromptStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """Energy of z times the norms of W_d's rows: the share that stage 3 leaves out on the latest tokens."""
        _, output_norms_LF = self._weight_norms()
        z_LN, of_z_N = self._sample([known.z for known in statistic.latest()])
        gives_LN = z_LN.float().abs() * output_norms_LF[:, of_z_N]
        energy, found = gives_LN.square().sum().clamp_min(torch.finfo(torch.float32).tiny), []
        for sparsity in sparsities:
            share = budget.shares(sparsity, gated=self._gated).down
            left_LN = gives_LN.masked_fill(gives_LN > cut(gives_LN, share), 0)
            found.append(left_LN.square().sum() / energy)
        values: list[float] = torch.stack(found).tolist()
        return values

    def _sample(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """About ``VALUES`` of each layer's values ``(T, C)``: ``(L, N)``, and the columns from which they come.

        They are runs of neighbours, which memory reads at once. Runs have even distances, and the same places in all
        tensors of one shape.
        """
        count, columns = values[0].numel(), values[0].shape[1]
        run = gcd(columns, RUN)
        step = max(1, count // VALUES)
        while gcd(step, columns // run) > 1:
            # Otherwise the runs would fall on the same few columns again and again.
            step += 1
        runs = columns // run
        numbers = torch.arange(0, count // run, step)
        tokens, of_token = numbers // runs, numbers % runs
        found = [values_TC.view(-1, runs, run)[tokens, of_token].flatten() for values_TC in values]
        of_run = torch.arange(run, device=self._device)
        places_N = (of_token[:, None].to(self._device) * run + of_run).flatten()
        return torch.stack([values_N.to(self._device) for values_N in found]), places_N

    def _resting(self, latest: Sequence[Activations], limits_LF: Tensor) -> Tensor:
        found = []
        for known, limits_F in zip(latest, limits_LF, strict=True):
            found.append(resting_values(known.z, known.up, limits_F.to(known.z.device)).to(self._device))
        return torch.stack(found)

    def _weight_norms(self) -> tuple[Tensor, Tensor]:
        """The norms of W_g's columns ``(L, D)``, and of W_d's rows by neuron ``(L, F)``."""
        if self._norms is None:
            # Computed at the first request that needs them, because they read two thirds of the FF weights.
            inputs = [block.parts_FD[0].column_norms().to(self._device) for block in self._blocks]
            outputs = [block.down.row_norms().to(self._device) for block in self._blocks]
            self._norms = torch.stack(inputs), torch.stack(outputs)
        return self._norms

    @property
    def _gated(self) -> bool:
        return self._blocks[0].activation is not None


def cut(values_LN: Tensor, share: float) -> Tensor:
    """Thresholds ``(L, 1)`` that this share of each row's values exceeds. Rounding cannot decide about any value."""
    count = round((1 - share) * values_LN.shape[1])
    if not count:
        return values_LN.new_full((len(values_LN), 1), -1)
    return values_LN.kthvalue(count, dim=1, keepdim=True).values * (1 + MARGIN)


def _limits(limit_L1: Tensor, factors_LC: Tensor) -> Tensor:
    """The limits of values such that value times factor exceeds a limit; infinite where the factor is 0."""
    return torch.where(factors_LC > 0, limit_L1 / factors_LC, torch.inf)


def _rms(up_TF: Tensor | None) -> Tensor:
    assert up_TF is not None
    return up_TF.float().square().mean(dim=0).sqrt()
