"""Which feed-forward (FF) neurons stay for a request, and how the choice for one prompt is reported.

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
    """The neurons that stay for a request. Of all others no token reads anything.

    layers: for each layer the indices of its neurons, sorted, ``(k,)``, at least one; k may differ. int64 where they
        are used, int32 in a ``Selection``.
    """

    layers: Sequence[Tensor]

    @property
    def counts(self) -> list[int]:
        """k of each layer."""
        return [len(kept_k) for kept_k in self.layers]

    @property
    def count(self) -> int:
        """How many neurons stay in all layers."""
        return sum(self.counts)

    @property
    def bytes(self) -> int:
        return sum(kept_k.nbytes for kept_k in self.layers)

    def shares(self, width: int) -> Shares:
        """What a token reads of the FF weights, of F neurons in each layer."""
        share = self.count / (width * len(self.layers))
        return Shares(share, share, share)

    def to(self, device: torch.device) -> "Kept":
        """On another device, for a step."""
        return Kept([kept_k.to(device, torch.int64) for kept_k in self.layers])

    def to_host(self) -> "Kept":
        """A copy in memory of the host's own, int32; on CUDA it arrives later, see ``pending``."""
        indices = torch.cat(tuple(self.layers)).to(torch.int32).to("cpu", non_blocking=True)
        return Kept(torch.split(indices, self.counts))

    def clone(self) -> "Kept":
        return Kept(torch.split(torch.cat(tuple(self.layers)), self.counts))

    def name(self) -> str:
        """Equal for equal sets; on the host."""
        digest = hashlib.sha256(torch.cat(tuple(self.layers)).to(torch.int32).numpy().tobytes())
        return digest.hexdigest()[:16]


# What was chosen on a prompt: neurons that stay, or thresholds by which each token picks what it reads.
Chosen = Kept | Thresholds


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen on one prompt, as it is reported and can be used again.

    seconds: from the finished prompt to weights that are ready to decode with.
    expert_set: a name for exactly this choice, equal for equal ones.
    prompt_tokens: how many tokens it was chosen on.
    chosen: the neurons or thresholds, on the host.
    """

    seconds: float
    expert_set: str
    prompt_tokens: int
    chosen: Chosen = field(repr=False, compare=False)
