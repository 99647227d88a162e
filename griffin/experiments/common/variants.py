"""Variants of one model: full, or pruned in some way."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from griffin.method.methods import METHODS
from griffin.request import MethodName, Pruning, StatisticName, StrategyName


@dataclass(frozen=True, slots=True)
class Variant:
    """One row or column of figures.

    name: its name in tables.
    """

    name: str
    sparsity: float = 0.0
    statistic: StatisticName = "flocking"
    selection: StrategyName = "top_k"
    method: MethodName = "griffin"

    def pruning(self, ids: Sequence[int]) -> Pruning:
        """The pruning for one text. Its seed comes from the text, so a text always draws the same neurons."""
        seed = int(name_of(ids)[:8], 16)
        return Pruning(self.sparsity, self.selection, self.statistic, seed, self.method)

    def question(self) -> list[Any]:
        """The settings that an answer depends on, for the ledger. The name is not part of it."""
        return [self.sparsity, *METHODS[self.method].settings(self.pruning(()))] if self.sparsity else []

    def renamed(self, name: str) -> "Variant":
        return replace(self, name=name)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


FULL = Variant("full")


def magnitude(sparsity: float) -> Variant:
    """The paper's static baseline (5.1): neurons chosen by their weights alone."""
    return Variant("magnitude", sparsity, statistic="magnitude")


def griffin(sparsity: float) -> Variant:
    return Variant("GRIFFIN", sparsity)


def plus(sparsity: float) -> Variant:
    return Variant("griffin+", sparsity, method="griffin+")


def name_of(ids: Sequence[int]) -> str:
    """A short name for these tokens: a hash."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:32]
