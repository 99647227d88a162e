"""Which feed-forward neurons stay for a request, and what stands for those that do not; and the report of it.

Shapes: L layers, D model width, k kept neurons of one layer, R the rank of a correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def kept_count(width: int, sparsity: float) -> int:
    """k, the neurons kept of ``width`` when the fraction ``sparsity`` is removed; at least 1."""
    return max(1, round((1 - sparsity) * width))


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

    def add_to_(self, layer: int, contract_kD: Tensor, order_k: Tensor | None = None) -> None:
        """Correct a layer's kept rows, which may stand in another order, in place."""
        left_kR, right_RD = self.left[layer].to(contract_kD.device), self.right[layer].to(contract_kD.device)
        if order_k is not None:
            left_kR = left_kR[order_k]
        if contract_kD.device.type == "cpu":
            # Many processors multiply matrices of half precision several times slower.
            contract_kD += left_kR.float() @ right_RD.float()
        else:
            contract_kD.addmm_(left_kR.to(contract_kD), right_RD.to(contract_kD))


@dataclass(frozen=True, slots=True, eq=False)
class Gating:
    """A kept neuron acts on a token only where its activation function gives enough; elsewhere it rests.

    A neuron that rests is not read further: of a gated block, neither its row of the second expanding projection nor
    that of the contracting one, of others only the latter.

    thresholds: what the activation function must exceed, in size, for a neuron to act: fp32 ``(k,)`` for each layer.
    resting: what stands for its activation otherwise: likewise. The block's offset holds what all of them give
        together, so that of a neuron that acts the difference from it is what counts.
    order: the kept neurons by how often they acted on the prompt, most often first: indices into these, int64 ``(k,)``
        for each layer. Laid out so, those that act on a token are next to each other more often than not.
    acting: how many neurons of all layers act on a token on average, by the prompt.
    """

    thresholds: Sequence[Tensor]
    resting: Sequence[Tensor]
    order: Sequence[Tensor]
    acting: int

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in (*self.thresholds, *self.resting, *self.order))

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32, *, non_blocking: bool = False) -> "Gating":
        thresholds, resting = (
            [values_k.to(device, dtype, non_blocking=non_blocking) for values_k in values]
            for values in (self.thresholds, self.resting)
        )
        order = [order_k.to(device, non_blocking=non_blocking) for order_k in self.order]
        return Gating(thresholds, resting, order, self.acting)

    def clone(self) -> "Gating":
        thresholds, resting, order = (
            [values_k.clone() for values_k in values] for values in (self.thresholds, self.resting, self.order)
        )
        return Gating(thresholds, resting, order, self.acting)

    def apply(self, layer: int, given: Tensor, z: Tensor) -> Tensor:
        """What counts of such activations.

        Args:
            given: what the activation functions give, ``(..., k)``; where there is no gate, that is z.
            z: ``(..., k)``.
        """
        acts = given.abs() > self.thresholds[layer].to(given)
        return torch.where(acts, z - self.resting[layer].to(z), 0)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One request's neurons.

    layers: for each layer the indices of its neurons, sorted, int64 ``(k,)``, at least one; k may differ.
    offset_LD: added to what each layer's FF block gives, in place of the neurons that are gone; fp32, or None.
    correction: of the kept neurons' rows of the second projections, for the same purpose, or None.
    gating: on which tokens they act, or None: on all.
    """

    layers: Sequence[Tensor]
    offset_LD: Tensor | None = None
    correction: Correction | None = None
    gating: Gating | None = None

    @property
    def counts(self) -> list[int]:
        """k of each layer."""
        return [len(experts_k) for experts_k in self.layers]

    @property
    def acting(self) -> int:
        """How many neurons of all layers act on a token, on average."""
        return self.gating.acting if self.gating else sum(self.counts)


@dataclass(frozen=True, slots=True)
class Selection:
    """The neurons chosen for one prompt.

    seconds: from the finished prompt to decode-ready weights.
    expert_set: a name for exactly these neurons, equal for equal sets.
    prompt_tokens: how many tokens they were chosen on.
    experts: which they are, for each layer sorted int32 indices ``(k,)``, on the host.
    offset_LD, correction, gating: what stands for the others, and when they act, see ``Kept``; on the host.
    """

    seconds: float
    expert_set: str
    prompt_tokens: int
    experts: tuple[Tensor, ...] = field(repr=False, compare=False)
    offset_LD: Tensor | None = field(default=None, repr=False, compare=False)
    correction: Correction | None = field(default=None, repr=False, compare=False)
    gating: Gating | None = field(default=None, repr=False, compare=False)

    @property
    def kept(self) -> int:
        """How many they are, in all layers."""
        return sum(len(experts_k) for experts_k in self.experts)

    @property
    def acting(self) -> int:
        """How many of them act on a token, on average."""
        return self.gating.acting if self.gating else self.kept

    @property
    def bytes(self) -> int:
        """Of memory that holding this takes, but for the correction: of neurons, offset and gating."""
        offset = 0 if self.offset_LD is None else self.offset_LD.nbytes
        gating = 0 if self.gating is None else self.gating.bytes
        return sum(experts_k.nbytes for experts_k in self.experts) + offset + gating
