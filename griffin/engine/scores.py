"""Scores of a prompt's own tokens, from the logits of its chunks.

Shapes: C tokens of a chunk, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin.decode.logprobs import Logprobs, logprobs
from griffin.request import Scoring


class Scores:
    """The log-probability of each token given those before it.

    found: for each token so far; None for the first, which nothing predicts, and for those that were not wanted.
    """

    def __init__(self, ids: Sequence[int], scoring: Scoring, known: int) -> None:
        """
        Args:
            known: how many tokens an earlier prompt had in common; their logits are not computed.
        """
        self._ids, self._top = ids, scoring.top
        self.found: list[Logprobs | None] = [None] * (known + 1)

    def add(self, logits_CV: Tensor, end: int) -> None:
        """Add what the logits of the last C tokens of a chunk that ends at ``end`` predict."""
        first = end - len(logits_CV)
        self.found += [None] * (first + 1 - len(self.found))
        targets = torch.tensor(self._ids[first + 1 : end + 1], device=logits_CV.device)
        if len(targets):
            self.found += logprobs(logits_CV[: len(targets)], targets, self._top)
