"""Tally: how far one pass over a text is from a reference, token by token.

Shapes: C tokens of a chunk, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(slots=True)
class Tally:
    """One pass over the text, compared with the reference. ``kl`` and ``loss`` are sums for each window, in nats.

    kl: KL(reference || this pass).
    loss: the negative log-likelihood of the text.
    same: the number of tokens where both find the same token most probable.
    kl_highest: the highest KL of one token.
    """

    kl: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    same: int = 0
    tokens: int = 0
    kl_highest: float = 0.0

    def begin(self) -> None:
        """Begin another window."""
        self.kl.append(0.0)
        self.loss.append(0.0)

    def add(self, expected_CV: Tensor, found_CV: Tensor, targets: Sequence[int]) -> None:
        """Add tokens to the window: log-probabilities of the reference and of this pass, fp64."""
        kl_C = functional.kl_div(found_CV, expected_CV, reduction="none", log_target=True).sum(dim=1)
        targets_C1 = torch.tensor(targets, device=found_CV.device)[:, None]
        self.kl[-1] += float(kl_C.sum())
        self.loss[-1] -= float(found_CV.gather(1, targets_C1).sum())
        self.same += int((expected_CV.argmax(dim=1) == found_CV.argmax(dim=1)).sum())
        self.tokens += len(targets)
        self.kl_highest = max(self.kl_highest, float(kl_C.max()))

    def row(self, name: str) -> dict[str, Any]:
        """The means over all tokens. ``kl`` and ``loss`` of each window are means too."""
        by_window = self.tokens / len(self.kl)
        return {
            "name": name,
            "kl": max(0.0, sum(self.kl) / self.tokens),
            "kl_highest": self.kl_highest,
            "same": self.same / self.tokens,
            "perplexity": math.exp(sum(self.loss) / self.tokens),
            "windows": {"kl": [kl / by_window for kl in self.kl], "loss": [loss / by_window for loss in self.loss]},
        }


def logprobs(logits_CV: Tensor) -> Tensor:
    """Log-probabilities in fp64. In fp32 the error of a sum over the vocabulary would be as large as the KL."""
    return logits_CV.double().log_softmax(dim=1)
