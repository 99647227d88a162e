"""Which feed-forward neurons stay for a request, and what stands for those that do not; and the report of it.

Shapes: L layers, D model width, k kept neurons of one layer, I input directions, R the rank of a correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Added to the second projections' kept rows, so that they give what they can tell of the others' share too.

    Of each layer a matrix ``(k + I, D)`` as a product, in the weights' dtype: its last rows go with what a block's
    input has in I directions, as if these were neurons without an activation function, with no rows of their own.

    left: ``(k + I, R)`` for each layer.
    right: ``(R, D)`` likewise.
    inputs: ``(I, D)`` likewise; nothing if I is 0. The same tensors for every request, which are never copied.
    """

    left: Sequence[Tensor]
    right: Sequence[Tensor]
    inputs: Sequence[Tensor] = ()

    @property
    def directions(self) -> int:
        """I."""
        return len(self.inputs[0]) if self.inputs else 0

    @property
    def parameters(self) -> int:
        """That a token uses besides those of the kept neurons."""
        return 2 * sum(inputs_ID.numel() for inputs_ID in self.inputs)

    @property
    def bytes(self) -> int:
        """Of memory that holding this takes."""
        return sum(factor.nbytes for factor in (*self.left, *self.right))

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Correction":
        left, right = (
            [factor.to(device, non_blocking=non_blocking) for factor in factors] for factors in (self.left, self.right)
        )
        return Correction(left, right, self.inputs)

    def clone(self) -> "Correction":
        left, right = ([factor.clone() for factor in factors] for factors in (self.left, self.right))
        return Correction(left, right, self.inputs)

    def write_(self, layer: int, contract_mD: Tensor) -> None:
        """Correct a layer's kept rows, in place, and write those of the input directions behind them.

        Args:
            contract_mD: ``(k + I, D)``.
        """
        contract_mD[len(contract_mD) - self.directions :] = 0
        contract_mD.addmm_(self.left[layer].to(contract_mD), self.right[layer].to(contract_mD))


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

    @property
    def directions(self) -> int:
        """I."""
        return self.correction.directions if self.correction else 0

    @property
    def extra_parameters(self) -> int:
        """That a token uses besides those of the kept neurons."""
        return self.correction.parameters if self.correction else 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The neurons chosen for one prompt.

    seconds: from the finished prompt to decode-ready weights.
    expert_set: a name for exactly these neurons, equal for equal sets.
    prompt_tokens: how many tokens they were chosen on.
    experts: which they are, for each layer sorted int32 indices ``(k,)``, on the host.
    offset_LD, correction: what stands for the others, see ``Kept``; on the host.
    extra_parameters: that a token uses besides those of the neurons.
    """

    seconds: float
    expert_set: str
    prompt_tokens: int
    experts: tuple[Tensor, ...] = field(repr=False, compare=False)
    offset_LD: Tensor | None = field(default=None, repr=False, compare=False)
    correction: Correction | None = field(default=None, repr=False, compare=False)
    extra_parameters: int = 0

    @property
    def kept(self) -> int:
        """How many they are, in all layers."""
        return sum(len(experts_k) for experts_k in self.experts)

    @property
    def bytes(self) -> int:
        """Of memory that holding this takes, but for the correction."""
        offset = 0 if self.offset_LD is None else self.offset_LD.nbytes
        return sum(experts_k.nbytes for experts_k in self.experts) + offset
