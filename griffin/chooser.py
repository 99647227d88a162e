"""Chooser: which neurons stay, by a request's choices and by what was counted of its prompt.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin import plus
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
        return Kept(layers, None if offset_LD is None else offset_LD.to(self._device))

    def _plus(self, statistic: FlockingStatistic, pruning: Pruning) -> Kept:
        assert self._calibration is not None
        parts, width = pruning.parts, self._blocks[0].width
        kept = kept_count(width, pruning.sparsity)
        found = plus.activations(statistic, self._calibration, "prior" in parts)
        compensated = "compensation" in parts
        loss_LF = (found.variance() if compensated else found.square()) * self._calibration.sensitivity_LF
        floor = min(kept, max(1, round(plus.FLOOR * width)))
        score_LF = loss_LF if "score" in parts else statistic.value()
        if "budget" in parts:
            mask_LF = plus.over_all_layers(loss_LF, kept * len(self._blocks), floor)
            counts = mask_LF.sum(dim=1).tolist()
        else:
            counts = [kept] * len(self._blocks)
        generator = pruning.generator()
        layers = [
            STRATEGIES["top_k"](score_F[None], count, generator)[0]
            for score_F, count in zip(score_LF, counts, strict=True)
        ]
        if not compensated:
            return Kept(layers)
        removed_LF = torch.ones_like(loss_LF)
        for removed_F, experts_k in zip(removed_LF, layers, strict=True):
            removed_F[experts_k] = 0
        return Kept(layers, plus.offsets(self._blocks, removed_LF, found.mean()))

    def _magnitude(self) -> Tensor:
        # Once, at the first request that wants it: it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks).to(self._device)
        return self._magnitude_LF
