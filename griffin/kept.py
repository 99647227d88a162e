"""Which feed-forward neurons stay for a request, and what stands for those that do not; and the report of it.

Shapes: L layers, D model width, k kept neurons of one layer, R the rank of a correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Added to the second projections' kept rows, so that they give what they can tell of the others' share too.

    Of each layer a matrix ``(k, D)`` as a product, in the weights' dtype.

    left: ``(k, R)`` for each layer.
    right: ``(R, D)`` likewise.
    """

    left: Sequence[Tensor]
    right: Sequence[Tensor]

    @property
    def bytes(self) -> int:
        return sum(factor.nbytes for factor in (*self.left, *self.right))

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Correction":
        left, right = (
            [factor.to(device, non_blocking=non_blocking) for factor in factors] for factors in (self.left, self.right)
        )
        return Correction(left, right)

    def clone(self) -> "Correction":
        return Correction([factor.clone() for factor in self.left], [factor.clone() for factor in self.right])

    def add_to_(self, layer: int, contract_kD: Tensor) -> None:
        """Correct a layer's kept rows, in place."""
        contract_kD.addmm_(self.left[layer].to(contract_kD), self.right[layer].to(contract_kD))


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One request's neurons.

    layers: for each layer the indices of its neurons, sorted, int64 ``(k,)``, at least one; k may differ.
    offset_LD: added to what each layer's FF block gives, in place of the neurons that are gone; fp32, or None.
    correction: of the kept neurons' rows of the second projections, for the same purpose, or None.
    """

    layers: Sequence[Tensor]
    offset_LD: Tensor | None = None
    correction: Correction | None = None

    @property
    def counts(self) -> list[int]:
        """k of each layer."""
        return [len(experts_k) for experts_k in self.layers]


@dataclass(frozen=True, slots=True)
class Selection:
    """The neurons chosen for one prompt.

    seconds: from the finished prompt to decode-ready weights.
    expert_set: a name for exactly these neurons, equal for equal sets.
    prompt_tokens: how many tokens they were chosen on.
    experts: which they are, for each layer sorted int32 indices ``(k,)``, on the host.
    offset_LD, correction: what stands for the others, see ``Kept``; on the host.
    """

    seconds: float
    expert_set: str
    prompt_tokens: int
    experts: tuple[Tensor, ...] = field(repr=False, compare=False)
    offset_LD: Tensor | None = field(default=None, repr=False, compare=False)
    correction: Correction | None = field(default=None, repr=False, compare=False)

    @property
    def kept(self) -> int:
        """How many they are, in all layers."""
        return sum(len(experts_k) for experts_k in self.experts)

    @property
    def bytes(self) -> int:
        """Of memory that holding this takes, but for the correction."""
        offset = 0 if self.offset_LD is None else self.offset_LD.nbytes
        return sum(experts_k.nbytes for experts_k in self.experts) + offset
