"""Likelihood of given tokens, from the logits that predict them.

Shapes: C tokens of a chunk, V vocabulary.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


@torch.inference_mode()
def target_logprobs(logits_CV: Tensor, targets: Sequence[int]) -> Tensor:
    """The natural log-probability of each target, from the row of logits that predicts it: fp32 ``(C,)``."""
    targets_C1 = torch.tensor(targets, device=logits_CV.device)[:, None]
    logits_CV = logits_CV.float()
    target_C: Tensor = logits_CV.gather(1, targets_C1)[:, 0]
    return target_C - logits_CV.logsumexp(dim=1)


def target_losses(logits: Iterable[Tensor], targets: Sequence[int]) -> Tensor:
    """The negative log-likelihood of each target, from logits in chunks: fp64 ``(len(targets),)``, on the host."""
    found: list[Tensor] = []
    done = 0
    for logits_CV in logits:
        found.append(-target_logprobs(logits_CV, targets[done : done + len(logits_CV)]).double().cpu())
        done += len(logits_CV)
    return torch.cat(found)
