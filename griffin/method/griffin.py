"""Method griffin, the paper to the letter: the same number of neurons in every layer, by one statistic.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from griffin.method.interface import Method
from griffin.method.statistic import FlockingStatistic, magnitude
from griffin.method.strategies import STRATEGIES
from griffin.neurons import Kept, kept_count
from griffin.request import Pruning


class Griffin(Method):
    """Keeps the same k in every layer, which a strategy picks by the flocking statistic or by weight magnitude."""

    name = "griffin"

    _magnitude_LF: Tensor | None = None

    @classmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        return 0

    @classmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        return [pruning.statistic, pruning.selection]

    def neurons(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Sequence[Tensor]:
        scores_LF = statistic.value() if pruning.statistic == "flocking" else self._magnitude()
        kept = kept_count(self._blocks[0].width, pruning.sparsity)
        return tuple(STRATEGIES[pruning.selection](scores_LF, kept, pruning.generator()))

    def choose(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Kept:
        return Kept(self.neurons(statistic, pruning, skips=skips))

    def worth(self, statistic: FlockingStatistic, pruning: Pruning) -> Tensor:
        """Each neuron's share of the tokens' relative energy: ``(L, F)``, all of them together 1."""
        energy_LF = statistic.value().square()
        return energy_LF / energy_LF.sum().clamp_min(torch.finfo(torch.float32).tiny)

    def _magnitude(self) -> Tensor:
        # At the first request that needs it: it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks).to(self._device)
        return self._magnitude_LF
