"""Method griffin+: as many active parameters as the paper's method, chosen and replaced so that the loss grows less.

Its parts, each in a module: one ranking over all layers (``budget``), a prediction of what removed neurons would have
given (``ridge``), and neurons that act on some tokens only (``acting``).

Shapes: L layers, F feed-forward neurons, k of them kept, D model width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from griffin.method.interface import Method
from griffin.method.plus import acting, budget, ridge
from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import Activations, FlockingStatistic
from griffin.model.families import FeedForward
from griffin.neurons import Kept, kept_count
from griffin.request import Pruning


class GriffinPlus(Method):
    """Needs a calibrated model. ``Pruning.parts`` says which of its parts are used."""

    name = "griffin+"
    needs_calibration = True

    def __init__(self, blocks: Sequence[FeedForward], device: torch.device, calibration: Calibration | None) -> None:
        super().__init__(blocks, device, calibration)
        self.require(calibration)
        assert calibration is not None
        self._calibration = calibration

    @classmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        looks_at_tokens = {"compensation", "ridge"} <= pruning.parts or "gating" in pruning.parts
        return ridge.LATEST_TOKENS if looks_at_tokens else 0

    @classmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        return [cls.name, sorted(pruning.parts)]

    def neurons(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Sequence[Tensor]:
        removed = 1 - self._shares(pruning)[0] if self._some_rest(statistic, pruning, skips) else pruning.sparsity
        kept, layers = kept_count(self._blocks[0].width, removed), len(self._blocks)
        loss_LF = self._loss(statistic, pruning)
        counts = budget.budgets(loss_LF, kept * layers) if "budget" in pruning.parts else [kept] * layers
        return budget.highest(loss_LF if "score" in pruning.parts else statistic.value(), counts)

    def choose(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Kept:
        latest = statistic.latest()
        kept = self._compensated(self.neurons(statistic, pruning, skips=skips), statistic, latest, pruning)
        return self._acting(kept, latest, pruning) if self._some_rest(statistic, pruning, skips) else kept

    def worth(self, statistic: FlockingStatistic, pruning: Pruning) -> Tensor:
        """The expected loss in nats: ``(1, L F)``, one ranking over all layers."""
        return self._loss(statistic, pruning).view(1, -1)

    def _loss(self, statistic: FlockingStatistic, pruning: Pruning) -> Tensor:
        """The loss in nats that removing each neuron brings: ``(L, F)``."""
        found = budget.activations(statistic, self._calibration, "prior" in pruning.parts)
        lost_LF = found.variance() if "compensation" in pruning.parts else found.square()
        return lost_LF * self._calibration.sensitivity_LF

    def _compensated(
        self,
        layers: Sequence[Tensor],
        statistic: FlockingStatistic,
        latest: Sequence[Activations],
        pruning: Pruning,
    ) -> Kept:
        """The kept neurons, with what replaces the removed ones."""
        parts, kept = pruning.parts, Kept(layers)
        if "compensation" not in parts or kept.count == len(layers) * self._blocks[0].width:
            return kept
        prior = "prior" in parts
        mean_LF = budget.activations(statistic, self._calibration, prior).mean()
        # A prompt of one token has no latest activations, and a regression needs some.
        if "ridge" not in parts or not (prior or latest):
            return replace(kept, offset_LD=budget.offsets(self._blocks, layers, mean_LF))
        tokens = statistic.moments().tokens
        correction, offset_LD = ridge.predict(
            self._blocks, layers, mean_LF, latest, tokens, self._calibration, prior=prior
        )
        return replace(kept, offset_LD=offset_LD, correction=correction)

    @staticmethod
    def _some_rest(statistic: FlockingStatistic, pruning: Pruning, skips: bool) -> bool:
        """Whether some kept neurons rest on a token. A prompt of few tokens shows too little to find thresholds."""
        return skips and "gating" in pruning.parts and statistic.latest_tokens >= acting.FEWEST_TOKENS

    def _shares(self, pruning: Pruning) -> tuple[float, float]:
        """The fraction of all neurons to keep, and the fraction of these to act on a token."""
        return acting.shares(1 - pruning.sparsity, 1 / (self._blocks[0].parts + 1))

    def _acting(self, kept: Kept, latest: Sequence[Activations], pruning: Pruning) -> Kept:
        _, share = self._shares(pruning)
        replaces = "compensation" in pruning.parts
        found = acting.find(kept.layers, latest, self._calibration, share, replaces=replaces)
        offset_LD = acting.given_at_rest(self._blocks, kept.layers, found, kept.correction)
        if kept.offset_LD is not None:
            offset_LD = kept.offset_LD + offset_LD
        return replace(kept, offset_LD=offset_LD, acting=found)
