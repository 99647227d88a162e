"""Chooser: which neurons stay, by a request's choices and by what was counted of its prompt.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin import plus, ridge
from griffin.auto import LossTable, Outlook
from griffin.calibration import Calibration
from griffin.errors import InvalidRequest
from griffin.families import FeedForward
from griffin.kept import Kept
from griffin.pruning import MethodName, Pruning
from griffin.selection import STRATEGIES, kept_count
from griffin.statistic import FlockingStatistic, magnitude


class Chooser:
    """Of one model. What depends on no prompt is computed at its first use."""

    def __init__(
        self,
        blocks: Sequence[FeedForward],
        device: torch.device,
        calibration: Calibration | None = None,
        losses: LossTable | None = None,
    ) -> None:
        """
        Args:
            blocks: whose weights stay where they are.
            device: where statistics are, and kept neurons are wanted.
            calibration: what method griffin+ needs.
            losses: what sparsity auto needs.
        """
        self._blocks, self._device = blocks, device
        self._calibration = calibration and calibration.to(device)
        self._losses = losses
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
        if pruning.auto is not None:
            self._require_losses(pruning.method)

    def _require_losses(self, method: MethodName) -> None:
        command = f"python -m griffin.experiments tune --method {method} --model MODEL --prompts FILE"
        if self._losses is None:
            raise InvalidRequest(f"sparsity: 'auto' needs this model to be measured once: {command}", "sparsity")
        if self._losses.method != method:
            raise InvalidRequest(
                f"sparsity: 'auto' was measured with method {self._losses.method}, not with {method}: take that one, "
                f"or measure anew: {command}",
                "sparsity",
            )

    @torch.inference_mode()
    def outlook(self, statistic: FlockingStatistic, pruning: Pruning, prompt_tokens: int) -> Outlook:
        """What is to be removed for this prompt."""
        assert pruning.auto is not None
        assert self._losses is not None
        removed = self.removed(statistic, pruning, self._losses.sparsities)
        return self._losses.outlook(pruning.auto, prompt_tokens, removed)

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
        loss_LF = self._worth(statistic, calibration, pruning)
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
