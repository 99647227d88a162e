"""Activations: the FF activations z of each layer while the full model reads a text, and how strongly they flock.

Shapes: T tokens, F feed-forward neurons.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.forward import extend, share

TOKENS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Flocking:
    """How alike the activations of a text's tokens are, in one layer.

    similarity: mean cosine similarity of the relative magnitudes of two different tokens, over all pairs.
    shuffled: the same after each token's magnitudes are shuffled over the neurons, as a mean over all shuffles.
    """

    similarity: float
    shuffled: float

    @property
    def strength(self) -> float:
        """The similarity on a scale from chance (0) to tokens that are all the same (1)."""
        return (self.similarity - self.shuffled) / (1 - self.shuffled)


def relative_magnitudes(z_TF: Tensor) -> Tensor:
    """Magnitudes of the relative activations (section 4.1), of unit length for each token: fp32 ``(T, F)``.

    A token whose activations are all zero stays zero.
    """
    z_TF = z_TF.float().abs()
    norms_T1 = torch.linalg.vector_norm(z_TF, dim=1, keepdim=True)
    # Division by a subnormal number would give noise.
    return torch.where(norms_T1 > torch.finfo(torch.float32).tiny, z_TF / norms_T1, 0.0)


def flocking(relative_TF: Tensor) -> Flocking:
    """The flocking of relative magnitudes ``(T, F)``. Tokens that are all zero do not count.

    Sums replace the pairs. For unit vectors u_i, the sum over all pairs i != j of u_i . u_j is |sum u_i|^2 - T. After a
    shuffle of u_j, u_i . u_j is (sum of u_i) (sum of u_j) / F on average.
    """
    tokens, width = int(relative_TF.any(dim=1).sum()), relative_TF.shape[1]
    pairs = tokens * (tokens - 1)
    if not pairs:
        return Flocking(0.0, 0.0)
    # In parts, because torch copies its input to fp64 for such a sum. Tokens that are all zero add nothing.
    parts = torch.split(relative_TF, TOKENS_AT_ONCE)
    sums_T = torch.cat([part_TF.sum(dim=1, dtype=torch.float64) for part_TF in parts])
    sums_F = torch.stack([part_TF.sum(dim=0, dtype=torch.float64) for part_TF in parts]).sum(dim=0)
    return Flocking(
        similarity=float((sums_F.square().sum() - tokens) / pairs),
        shuffled=float((sums_T.sum().square() - sums_T.square().sum()) / width / pairs),
    )


def visit_activations(model: PreTrainedModel, ids: Sequence[int], visit: Callable[[int, Tensor], None]) -> None:
    """Read a text in one pass. ``visit`` gets the number and the activations z ``(T, F)`` of each layer in turn.

    Memory holds the activations of only one layer at a time.
    """
    # A second tree over the same weights, for the hooks.
    model = share(model.eval())
    blocks = feed_forwards(model)
    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            hooks.callback(block.contract.register_forward_pre_hook(_visiting(visit, layer)).remove)
        extend(model, torch.tensor(ids, dtype=torch.long, device=model.device), KVCache(len(blocks)))


def _visiting(visit: Callable[[int, Tensor], None], layer: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Some families flatten to (T, F) before the projection, others keep (1, T, F).
        visit(layer, inputs[0].reshape(-1, inputs[0].shape[-1]))

    return hook
