"""Method griffin, exactly as in the paper: every layer keeps the same number of neurons, chosen by one statistic.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from griffin.method.interface import Method
from griffin.method.statistic import PromptStatistic, magnitude
from griffin.method.strategies import STRATEGIES
from griffin.model.accounting import Accounting
from griffin.neurons import Kept, kept_count
from griffin.request import Pruning


class Griffin(Method):
    """Keeps k neurons in every layer. A strategy picks them by the flocking statistic or by weight magnitude."""

    name = "griffin"

    _magnitude_LF: Tensor | None = None

    @classmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        return 0

    @classmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        return [pruning.statistic, pruning.selection]

    @classmethod
    def reads(cls, sparsity: float, accounting: Accounting) -> tuple[int, int]:
        return accounting.active(accounting.kept(sparsity)), accounting.bytes_per_token_at(sparsity)

    def choose(self, statistic: PromptStatistic, pruning: Pruning) -> Kept:
        scores_LF = statistic.value() if pruning.statistic == "flocking" else self._magnitude()
        kept = kept_count(self._blocks[0].width, pruning.sparsity)
        return Kept(tuple(STRATEGIES[pruning.selection](scores_LF, kept, pruning.generator())))

    def removed(self, statistic: PromptStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """The share of the tokens' relative energy that the removed neurons have: the lowest ones of each layer."""
        energy_LF = statistic.value().square()
        worth_LF = energy_LF / energy_LF.sum().clamp_min(torch.finfo(torch.float32).tiny)
        lost_LF = worth_LF.sort(dim=-1).values.cumsum(dim=-1)
        width, found = lost_LF.shape[1], []
        for sparsity in sparsities:
            kept = kept_count(width, sparsity)
            found.append(lost_LF[:, width - kept - 1].sum() if kept < width else lost_LF.new_zeros(()))
        values: list[float] = torch.stack(found).tolist()
        return values

    def _magnitude(self) -> Tensor:
        # Computed at the first request that needs it, because it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks).to(self._device)
        return self._magnitude_LF
