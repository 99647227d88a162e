"""Chooser: which neurons stay, by a request's choices and by what was counted of its prompt.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin import plus, ridge
from griffin.calibration import Calibration
from griffin.errors import InvalidRequest
from griffin.families import FeedForward
from griffin.kept import Kept
from griffin.pruning import Pruning
from griffin.selection import STRATEGIES, kept_count
from griffin.statistic import FlockingStatistic, magnitude


class Chooser:
    """Of one model. What depends on no prompt is computed at its first use."""

    def __init__(self, blocks: Sequence[FeedForward], device: torch.device, calibration: Calibration | None) -> None:
        """
        Args:
            blocks: whose weights stay where they are.
            device: where statistics are, and kept neurons are wanted.
            calibration: what method griffin+ needs.
        """
        self._blocks, self._device = blocks, device
        self._calibration = calibration and calibration.to(device)
        self._magnitude_LF: Tensor | None = None

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned so.
        """
        if pruning.method == "griffin+" and self._calibration is None:
            raise InvalidRequest(
                "griffin.method: 'griffin+' needs this model to be calibrated once: "
                "python -m griffin.experiments calibrate --model MODEL",
                "griffin.method",
            )

    def latest_tokens(self, pruning: Pruning) -> int:
        """How many of a prompt's last tokens' activations are needed besides the sums over all."""
        wanted = pruning.method == "griffin+" and pruning.reuse is None and {"compensation", "ridge"} <= pruning.parts
        return ridge.LATEST_TOKENS if wanted else 0

    @torch.inference_mode()
    def choose(self, statistic: FlockingStatistic, pruning: Pruning) -> Kept:
        """The neurons that stay, some of which must go."""
        if pruning.reuse is not None:
            return self._reused(pruning)
        if pruning.method == "griffin+":
            return self._plus(statistic, pruning)
        scores_LF = statistic.value() if pruning.statistic == "flocking" else self._magnitude()
        kept = kept_count(self._blocks[0].width, pruning.sparsity)
        return Kept(tuple(STRATEGIES[pruning.selection](scores_LF, kept, pruning.generator())))

    def _reused(self, pruning: Pruning) -> Kept:
        assert pruning.reuse is not None
        experts, offset_LD = pruning.reuse.experts, pruning.reuse.offset_LD
        layers = [experts_k.to(self._device, torch.int64) for experts_k in experts]
        correction = pruning.reuse.correction
        return Kept(
            layers,
            None if offset_LD is None else offset_LD.to(self._device),
            None if correction is None else correction.to(self._device),
        )

    def _plus(self, statistic: FlockingStatistic, pruning: Pruning) -> Kept:
        calibration, parts = self._calibration, pruning.parts
        assert calibration is not None
        kept, layers = kept_count(self._blocks[0].width, pruning.sparsity), len(self._blocks)
        found = plus.activations(statistic, calibration, "prior" in parts)
        compensated = "compensation" in parts
        loss_LF = (found.variance() if compensated else found.square()) * calibration.sensitivity_LF
        counts = plus.budgets(loss_LF, kept * layers) if "budget" in parts else [kept] * layers
        experts = plus.highest(loss_LF if "score" in parts else statistic.value(), counts)
        if not compensated:
            return Kept(experts)
        if "ridge" not in parts:
            return Kept(experts, plus.offsets(self._blocks, experts, found.mean()))
        correction, offset_LD = ridge.predict(
            self._blocks, experts, found.mean(), statistic, calibration, prior="prior" in parts
        )
        return Kept(experts, offset_LD, correction)

    def _magnitude(self) -> Tensor:
        # Once, at the first request that wants it: it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks).to(self._device)
        return self._magnitude_LF
