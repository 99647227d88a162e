"""Log-probabilities of tokens, in the form of reports.

Shapes: C positions, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities at one position, under the model itself: before bias, penalties, temperature and filters.

    chosen: the log-probability of the token at that position.
    top: ids and log-probabilities of the most probable tokens, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs(logits_CV: Tensor, ids_C: Tensor, top: int) -> list[Logprobs]:
    """For each of C positions: the log-probability of its token, and those of the ``top`` most probable tokens.

    Equal logits give equal floats, so equality finds a token among the most probable ones.
    """
    logits_CV = logits_CV.float()
    normalisers_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
    chosen_C = (logits_CV.gather(1, ids_C[:, None]) - normalisers_C1)[:, 0].tolist()
    if not top:
        return [Logprobs(value) for value in chosen_C]
    highest = logits_CV.topk(min(top, logits_CV.shape[1]))
    rows = zip(chosen_C, highest.indices.tolist(), (highest.values - normalisers_C1).tolist(), strict=True)
    return [Logprobs(value, tuple(zip(ids, values, strict=True))) for value, ids, values in rows]
