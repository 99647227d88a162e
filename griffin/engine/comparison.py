"""How far the kept neurons' predictions are from the full model's, given the same preceding tokens.

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

# Logits of this many tokens are held at once, from both sides.
AT_ONCE = 64
# In nats per token. The exponential of more is no float. The exponential of its negative is 0, which has no logarithm.
MOST_NATS = 700.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Kept neurons beside the full model on tokens that they generated, given the same preceding tokens.

    tokens: how many were compared: all but the first, which is the full model's.
    kl: mean Kullback-Leibler divergence of the pruned distribution from the full one, in nats.
    top1_agreement: how often both find the same token most probable, 0 to 1.
    perplexity_ratio: the full model's perplexity on these tokens over the pruned model's; above 1, the full model
        finds them less likely.
    """

    tokens: int
    kl: float
    top1_agreement: float
    perplexity_ratio: float


@torch.inference_mode()
def divergence(model: PreTrainedModel, full_TD: Tensor, pruned: Iterable[Tensor], ids: Sequence[int]) -> Comparison:
    """Compare what both sides make of the same tokens.

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
    # For equal distributions, rounding may give a little less than 0.
    mean = max(0.0, float(kl) / tokens)
    return Comparison(
        tokens, mean, int(agreed) / tokens, math.exp(max(-MOST_NATS, min(MOST_NATS, float(gap) / tokens)))
    )
