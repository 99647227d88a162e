"""Chooser: which neurons stay, by a request's choices and by what was counted of its prompt.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from griffin.method.auto import LossTable, Outlook
from griffin.method.plus import budget as plus
from griffin.method.plus import gating, ridge
from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import Activations, FlockingStatistic, magnitude
from griffin.method.strategies import STRATEGIES
from griffin.model.families import FeedForward
from griffin.neurons import Kept, kept_count
from griffin.request import Pruning


class Chooser:
    """Of one model. What depends on no prompt is computed at its first use."""

    def __init__(
        self,
        blocks: Sequence[FeedForward],
        device: torch.device,
        calibration: Calibration | None = None,
        losses: Sequence[LossTable] = (),
    ) -> None:
        """
        Args:
            blocks: whose weights stay where they are.
            device: where statistics are, and kept neurons are wanted.
            calibration: what method griffin+ needs.
            losses: what sparsity auto needs, for each method that was measured.
        """
        self._blocks, self._device = blocks, device
        self._calibration = calibration and calibration.to(device)
        # Whether neurons may be kept that act on some tokens only.
        self.gates = True
        self._losses = {table.method: table for table in losses}
        self._magnitude_LF: Tensor | None = None

    @property
    def is_calibrated(self) -> bool:
        return self._calibration is not None

    @torch.inference_mode()
    def outlook(self, statistic: FlockingStatistic, pruning: Pruning, prompt_tokens: int) -> Outlook:
        """What is to be removed for this prompt."""
        assert pruning.auto is not None
        table = self._losses[pruning.method]
        return table.outlook(pruning.auto, prompt_tokens, self.removed(statistic, pruning, table.sparsities))

    @torch.inference_mode()
    def removed(self, statistic: FlockingStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """At each of these sparsities, what the removed neurons are worth.

        By the paper's method their share of the tokens' energy, the mean over layers; by griffin+ the loss in nats that
        it expects of them.
        """
        width = self._blocks[0].width
        counts = [kept_count(width, sparsity) for sparsity in sparsities]
        if pruning.method == "griffin+":
            assert self._calibration is not None
            worth_F = self._worth(statistic, self._calibration, pruning).flatten()
            counts, share = [count * len(self._blocks) for count in counts], 1.0
        else:
            worth_F = statistic.value().square()
            share = 1 / float(worth_F.sum().clamp_min(torch.finfo(torch.float32).tiny))
        total = worth_F.sort(dim=-1).values.cumsum(dim=-1)
        last = total.shape[-1]
        found = [
            total[..., last - count - 1].sum() * share if count < last else total.new_zeros(()) for count in counts
        ]
        values: list[float] = torch.stack(found).tolist()
        return values

    def latest_tokens(self, pruning: Pruning) -> int:
        """How many of a prompt's last tokens' activations are needed besides the sums over all."""
        removing = pruning.reuse is None and (pruning.sparsity > 0 or pruning.auto is not None)
        wanted = {"compensation", "ridge"} <= pruning.parts or "gating" in pruning.parts
        return ridge.LATEST_TOKENS if removing and pruning.method == "griffin+" and wanted else 0

    @torch.inference_mode()
    def choose(self, statistic: FlockingStatistic, pruning: Pruning) -> Kept:
        """The neurons that stay, some of which must go, and what stands for those."""
        if pruning.reuse is not None:
            return self._reused(pruning)
        experts = self.experts(statistic, pruning)
        if pruning.method != "griffin+":
            return Kept(experts)
        latest = statistic.latest()
        kept = self._compensated(experts, statistic, latest, pruning)
        return self._gated(kept, latest, pruning) if self._gates(statistic, pruning) else kept

    @torch.inference_mode()
    def experts(self, statistic: FlockingStatistic, pruning: Pruning) -> Sequence[Tensor]:
        """Of each layer the neurons that stay, chosen by what was read: int64 ``(k,)``, sorted."""
        kept = kept_count(self._blocks[0].width, pruning.sparsity)
        if pruning.method == "griffin+":
            assert self._calibration is not None
            if self._gates(statistic, pruning):
                kept = kept_count(self._blocks[0].width, 1 - self._shares(pruning)[0])
            loss_LF, layers = self._worth(statistic, self._calibration, pruning), len(self._blocks)
            counts = plus.budgets(loss_LF, kept * layers) if "budget" in pruning.parts else [kept] * layers
            return plus.highest(loss_LF if "score" in pruning.parts else statistic.value(), counts)
        scores_LF = statistic.value() if pruning.statistic == "flocking" else self._magnitude()
        return tuple(STRATEGIES[pruning.selection](scores_LF, kept, pruning.generator()))

    def _reused(self, pruning: Pruning) -> Kept:
        assert pruning.reuse is not None
        experts, offset_LD, gated = pruning.reuse.experts, pruning.reuse.offset_LD, pruning.reuse.gating
        layers = [experts_k.to(self._device, torch.int64) for experts_k in experts]
        correction = pruning.reuse.correction
        return Kept(
            layers,
            None if offset_LD is None else offset_LD.to(self._device),
            None if correction is None else correction.to(self._device),
            None if gated is None else gated.to(self._device),
        )

    def _compensated(
        self,
        experts: Sequence[Tensor],
        statistic: FlockingStatistic,
        latest: Sequence[Activations],
        pruning: Pruning,
    ) -> Kept:
        """With what method griffin+ has for the neurons that are gone."""
        calibration, parts = self._calibration, pruning.parts
        assert calibration is not None
        prior = "prior" in parts
        if "compensation" not in parts or sum(map(len, experts)) == len(experts) * self._blocks[0].width:
            return Kept(experts)
        mean_LF = plus.activations(statistic, calibration, prior).mean()
        # A prompt of one token shows nothing to go by.
        if "ridge" not in parts or not (prior or latest):
            return Kept(experts, plus.offsets(self._blocks, experts, mean_LF))
        tokens = statistic.moments().tokens
        correction, offset_LD = ridge.predict(self._blocks, experts, mean_LF, latest, tokens, calibration, prior=prior)
        return Kept(experts, offset_LD, correction)

    def _gates(self, statistic: FlockingStatistic, pruning: Pruning) -> bool:
        """Whether neurons are to act on some tokens only. A prompt of few tokens shows too little to go by."""
        return self.gates and "gating" in pruning.parts and statistic.latest_tokens >= gating.FEWEST_TOKENS

    def _shares(self, pruning: Pruning) -> tuple[float, float]:
        """The parts of neurons to keep, and of these to act on a token."""
        return gating.shares(1 - pruning.sparsity, 1 / (self._blocks[0].parts + 1))

    def _gated(self, kept: Kept, latest: Sequence[Activations], pruning: Pruning) -> Kept:
        assert self._calibration is not None
        _, acting = self._shares(pruning)
        rest = "compensation" in pruning.parts
        gated = gating.gate(kept.layers, latest, self._calibration, acting, rest=rest)
        offset_LD = gating.given_at_rest(self._blocks, kept.layers, gated, kept.correction)
        return replace(
            kept, offset_LD=offset_LD if kept.offset_LD is None else kept.offset_LD + offset_LD, gating=gated
        )

    @staticmethod
    def _worth(statistic: FlockingStatistic, calibration: Calibration, pruning: Pruning) -> Tensor:
        """The loss in nats that removing each neuron brings, by griffin+: ``(L, F)``."""
        found = plus.activations(statistic, calibration, "prior" in pruning.parts)
        lost_LF = found.variance() if "compensation" in pruning.parts else found.square()
        return lost_LF * calibration.sensitivity_LF

    def _magnitude(self) -> Tensor:
        # Once, at the first request that wants it: it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks).to(self._device)
        return self._magnitude_LF
