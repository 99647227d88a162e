"""Kept: which feed-forward neurons stay for a request, and what stands for those that do not.

Shapes: L layers, D model width, k kept neurons of one layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One request's neurons.

    layers: for each layer the indices of its neurons, sorted, int64 ``(k,)``, at least one; k may differ.
    offset_LD: added to what each layer's FF block gives, in place of the neurons that are gone; fp32, or None.
    """

    layers: Sequence[Tensor]
    offset_LD: Tensor | None = None

    @property
    def counts(self) -> list[int]:
        """k of each layer."""
        return [len(experts_k) for experts_k in self.layers]
