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

    found: one for each token so far; None for the first token, which has no prediction, and for unwanted scores.
    """

    def __init__(self, ids: Sequence[int], scoring: Scoring, known: int) -> None:
        """
        Args:
            known: number of tokens reused from an earlier prompt; their logits are not computed.
        """
        self._ids, self._top = ids, scoring.top
        self.found: list[Logprobs | None] = [None] * (known + 1)

    def add(self, logits_CV: Tensor, end: int) -> None:
        """Add the scores that a chunk's logits predict: those of its last C tokens; the chunk ends at ``end``."""
        first = end - len(logits_CV)
        self.found += [None] * (first + 1 - len(self.found))
        targets = torch.tensor(self._ids[first + 1 : end + 1], device=logits_CV.device)
        if len(targets):
            self.found += logprobs(logits_CV[: len(targets)], targets, self._top)
