"""The feed-forward (FF) neurons that stay for a request, and how the choice for one prompt is reported.

Shapes: L layers, k kept neurons of one layer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from griffin.thresholds import Shares, Thresholds


def kept_count(width: int, sparsity: float) -> int:
    """k, the neurons kept of ``width`` when the fraction ``sparsity`` is removed; at least 1."""
    return max(1, round((1 - sparsity) * width))


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The neurons that stay for a request. No token reads anything of the others.

    layers: for each layer the sorted indices of its neurons, ``(k,)``, at least one; k may differ between layers.
        int64 while in use, int32 in a ``Selection``.
    """

    layers: Sequence[Tensor]

    @property
    def counts(self) -> list[int]:
        """k of each layer."""
        return [len(kept_k) for kept_k in self.layers]

    @property
    def count(self) -> int:
        """Number of neurons that stay, over all layers."""
        return sum(self.counts)

    @property
    def bytes(self) -> int:
        return sum(kept_k.nbytes for kept_k in self.layers)

    def shares(self, width: int) -> Shares:
        """The shares of the FF weights that a token reads, of ``width`` = F neurons in each layer."""
        share = self.count / (width * len(self.layers))
        return Shares(share, share, share)

    def to(self, device: torch.device) -> "Kept":
        """A copy on another device, for a step."""
        return Kept([kept_k.to(device, torch.int64) for kept_k in self.layers])

    def to_host(self) -> "Kept":
        """A copy in the host's memory, int32. From CUDA it arrives later, see ``pending``."""
        indices = torch.cat(tuple(self.layers)).to(torch.int32).to("cpu", non_blocking=True)
        return Kept(torch.split(indices, self.counts))

    def clone(self) -> "Kept":
        return Kept(torch.split(torch.cat(tuple(self.layers)), self.counts))

    def name(self) -> str:
        """A name that is equal for equal sets; call it on the host."""
        digest = hashlib.sha256(torch.cat(tuple(self.layers)).to(torch.int32).numpy().tobytes())
        return digest.hexdigest()[:16]


# The choice for a prompt: neurons that stay, or thresholds with which each token picks what it reads.
Chosen = Kept | Thresholds


@dataclass(frozen=True, slots=True)
class Selection:
    """The choice for one prompt, for reports and for reuse.

    seconds: from the finished prompt to weights that are ready to decode with.
    expert_set: a name for exactly this choice; equal choices have equal names.
    prompt_tokens: number of tokens on which it was chosen.
    chosen: the neurons or thresholds, on the host.
    """

    seconds: float
    expert_set: str
    prompt_tokens: int
    chosen: Chosen = field(repr=False, compare=False)
