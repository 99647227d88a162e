"""Which feed-forward (FF) neurons stay for a request, when they act, and what replaces the others.

Shapes: L layers, D model width, k kept neurons of one layer, R the rank of a correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def kept_count(width: int, sparsity: float) -> int:
    """k, the neurons kept of ``width`` when the fraction ``sparsity`` is removed; at least 1."""
    return max(1, round((1 - sparsity) * width))


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Added to the kept rows of each second projection. The kept neurons then predict the removed ones' output, too.

    For each layer a matrix ``(k, D)`` as a product of two factors, in the weights' dtype.

    left: ``(k, R)`` for each layer.
    right: ``(R, D)`` for each layer.
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
        """Correct one layer's kept rows in place.

        Args:
            order_k: the order in which the rows stand, as indices into the kept neurons; None if it is the same.
        """
        left_kR, right_RD = self.left[layer].to(contract_kD.device), self.right[layer].to(contract_kD.device)
        if order_k is not None:
            left_kR = left_kR[order_k]
        if contract_kD.device.type == "cpu":
            # Many processors multiply matrices of half precision several times slower.
            contract_kD += left_kR.float() @ right_RD.float()
        else:
            contract_kD.addmm_(left_kR.to(contract_kD), right_RD.to(contract_kD))


@dataclass(frozen=True, slots=True, eq=False)
class Acting:
    """Which kept neurons act on a token: those whose activation function gives more than a threshold. Others rest.

    A resting neuron is read only as far as is needed to know that it rests. In a gated block its rows of the up and the
    contracting projection are skipped, in other blocks its row of the contracting projection.

    thresholds: what the absolute value of the activation function must exceed: fp32 ``(k,)`` for each layer.
    resting: what replaces the activation of a neuron that rests: fp32 ``(k,)`` for each layer. The block's offset
        already holds the sum of all of them, so an acting neuron adds its difference from it.
    order: indices into the kept neurons, most often acting first: int64 ``(k,)`` for each layer. A step that lays
        them out in this order reads longer runs of memory.
    count: how many neurons of all layers act on a token on average, measured on the prompt.
    """

    thresholds: Sequence[Tensor]
    resting: Sequence[Tensor]
    order: Sequence[Tensor]
    count: int

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in (*self.thresholds, *self.resting, *self.order))

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32, *, non_blocking: bool = False) -> "Acting":
        """On another device; thresholds and resting values in ``dtype``."""
        thresholds, resting = (
            [values_k.to(device, dtype, non_blocking=non_blocking) for values_k in values]
            for values in (self.thresholds, self.resting)
        )
        order = [order_k.to(device, non_blocking=non_blocking) for order_k in self.order]
        return Acting(thresholds, resting, order, self.count)

    def clone(self) -> "Acting":
        thresholds, resting, order = (
            [values_k.clone() for values_k in values] for values in (self.thresholds, self.resting, self.order)
        )
        return Acting(thresholds, resting, order, self.count)

    def apply(self, layer: int, given: Tensor, z: Tensor) -> Tensor:
        """The activations that the second projection receives: z minus its resting value where a neuron acts, else 0.

        Args:
            given: what the activation function gives, ``(..., k)``; in a block without a gate that is z.
            z: ``(..., k)``.
        """
        acts = given.abs() > self.thresholds[layer].to(given)
        return torch.where(acts, z - self.resting[layer].to(z), 0)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The neurons of one request.

    layers: for each layer the indices of its neurons, sorted, ``(k,)``, at least one; k may differ. int64 where they
        are used, int32 in a ``Selection``.
    offset_LD: added to each layer's FF output in place of the removed neurons; fp32, or None.
    correction: added to the kept rows of the second projections for the same purpose, or None.
    acting: on which tokens they act, or None if they act on all.
    """

    layers: Sequence[Tensor]
    offset_LD: Tensor | None = None
    correction: Correction | None = None
    acting: Acting | None = None

    @property
    def counts(self) -> list[int]:
        """k of each layer."""
        return [len(kept_k) for kept_k in self.layers]

    @property
    def count(self) -> int:
        """How many neurons stay in all layers."""
        return sum(self.counts)

    @property
    def acting_count(self) -> int:
        """How many neurons of all layers act on a token, on average."""
        return self.acting.count if self.acting else self.count

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but indices."""
        return self.offset_LD is None and self.correction is None and self.acting is None

    @property
    def bytes(self) -> int:
        """Memory of all but the correction, which is far larger and counts its own."""
        offset = 0 if self.offset_LD is None else self.offset_LD.nbytes
        acting = 0 if self.acting is None else self.acting.bytes
        return sum(kept_k.nbytes for kept_k in self.layers) + offset + acting

    def to(self, device: torch.device, index_dtype: torch.dtype = torch.int64, *, non_blocking: bool = False) -> "Kept":
        """On another device, for a step: indices in ``index_dtype``."""
        return Kept(
            [kept_k.to(device, index_dtype, non_blocking=non_blocking) for kept_k in self.layers],
            None if self.offset_LD is None else self.offset_LD.to(device, non_blocking=non_blocking),
            self.correction and self.correction.to(device, non_blocking=non_blocking),
            self.acting and self.acting.to(device, non_blocking=non_blocking),
        )

    def indices(self) -> "Kept":
        """The indices alone: all that the paper's method chooses."""
        return Kept(self.layers)


@dataclass(frozen=True, slots=True)
class Selection:
    """The neurons chosen for one prompt, as they are reported and can be used again.

    seconds: from the finished prompt to weights that are ready to decode with.
    expert_set: a name for exactly these neurons, equal for equal sets.
    prompt_tokens: how many tokens they were chosen on.
    kept: the neurons, on the host.
    """

    seconds: float
    expert_set: str
    prompt_tokens: int
    kept: Kept = field(repr=False, compare=False)

    def without_correction(self) -> "Selection":
        return replace(self, kept=replace(self.kept, correction=None))

    def indices(self) -> "Selection":
        """Of its neurons the indices alone; to decode with them again would give something else."""
        return replace(self, kept=self.kept.indices())
