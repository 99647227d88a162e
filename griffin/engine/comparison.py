"""Compares the kept neurons' predictions with the full model's, given the same preceding tokens.

Shapes: T tokens, C tokens of a piece, D model width, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from griffin.model.forward import head

# Logits of so many tokens are held at once, from both models.
AT_ONCE = 64
# Nats per token. The exponential of a larger number is not a float; that of its negative is 0, without a logarithm.
MOST_NATS = 700.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The kept neurons beside the full model, on tokens that they generated, with the same preceding tokens.

    tokens: number of compared tokens: all but the first, which the full model made.
    kl: mean Kullback-Leibler divergence of the pruned distribution from the full one, in nats.
    top1_agreement: how often both models find the same token most probable, 0 to 1.
    perplexity_ratio: the full model's perplexity on these tokens over the pruned model's; above 1, the full model
        finds them less likely.
    """

    tokens: int
    kl: float
    top1_agreement: float
    perplexity_ratio: float


@torch.inference_mode()
def divergence(model: PreTrainedModel, full_TD: Tensor, pruned: Iterable[Tensor], ids: Sequence[int]) -> Comparison:
    """Compare the predictions of both models for the same tokens.

    Args:
        full_TD: the full model's last hidden states.
        pruned: the kept neurons' logits after the same tokens, ``(C, V)`` in pieces of at most ``AT_ONCE``.
        ids: the token that follows each of them.
    """
    tokens, device = len(ids), full_TD.device
    kl, gap = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    agreed, first = torch.zeros((), dtype=torch.int64, device=device), 0
    next_T = torch.tensor(ids, device=device)
    for pruned_CV in pruned:
        rows = slice(first, first + len(pruned_CV))
        first = rows.stop
        full_CV, pruned_CV = (side.float().log_softmax(dim=1) for side in (head(model, full_TD[rows]), pruned_CV))
        kl += functional.kl_div(pruned_CV, full_CV, reduction="sum", log_target=True)
        agreed += (full_CV.argmax(dim=1) == pruned_CV.argmax(dim=1)).sum()
        gap += (pruned_CV - full_CV).gather(1, next_T[rows, None]).sum()
    # For equal distributions, rounding may give slightly less than 0.
    mean = max(0.0, float(kl) / tokens)
    return Comparison(
        tokens, mean, int(agreed) / tokens, math.exp(max(-MOST_NATS, min(MOST_NATS, float(gap) / tokens)))
    )
