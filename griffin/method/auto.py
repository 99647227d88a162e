"""Sparsity "auto": the largest sparsity whose predicted loss on a request stays under a limit.

What a sparsity costs is predicted from what ``experiments tune`` measured with this model on a user's prompts: the KL
divergence of the pruned model from the full one, in nats per generated token, as a product of powers,

    KL(sparsity) = exp(c) * prompt_tokens^a * position^b * removed^d,

with a c for each measured sparsity. ``removed`` is what the prompt's statistic says that the removed neurons are worth:
the more it concentrates on few neurons, the less. Lines are drawn between the measured sparsities, from nothing at 0.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from griffin.errors import LoadError
from griffin.request import Auto

# Raised when files of before would be read wrongly.
EDITION = 2
# Sparsities are multiples of this, so that figures by sparsity stay few.
STEP = 0.05
# A statistic that is all on the kept neurons still has a logarithm.
LEAST_REMOVED = 1e-6


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was decided for one prompt: the sparsity, and the KL divergence expected at it, in nats per token."""

    sparsity: float
    divergence: float
    limit: float


@dataclass(frozen=True, slots=True)
class LossTable:
    """What was measured of one model, with one method.

    sparsities: rising, from above 0; with ``constants``, a c for each.
    length, position, removed: the powers a, b and d.
    prompt_tokens: of the shortest and the longest prompt it was measured on.
    least_removed: for each of the sparsities, of the prompt whose statistic was the most concentrated.
    tokens: of the longest answer.
    spread: standard deviation of the logarithm of what was found over what is predicted, on prompts left out.
    prompts: on how many.
    """

    method: str
    sparsities: Sequence[float]
    constants: Sequence[float]
    length: float
    position: float
    removed: float
    prompt_tokens: Sequence[int]
    least_removed: Sequence[float]
    tokens: int
    spread: float
    prompts: int

    def outlook(self, auto: Auto, prompt_tokens: int, removed: Sequence[float]) -> Outlook:
        """The largest multiple of ``STEP`` within the limit; 0 if none is.

        Args:
            removed: for each of the sparsities, of this prompt.
        """
        found = self.divergences(prompt_tokens, auto.tokens or self.tokens, removed)
        steps = range(1, math.floor(self.sparsities[-1] / STEP + 1e-9) + 1)
        for number in reversed(steps):
            sparsity = round(number * STEP, 6)
            divergence = self._between(found, sparsity)
            if divergence <= auto.limit:
                return Outlook(sparsity, divergence, auto.limit)
        return Outlook(0.0, 0.0, auto.limit)

    def divergences(self, prompt_tokens: int, tokens: int, removed: Sequence[float]) -> list[float]:
        """At each of the sparsities, the mean over that many generated tokens; never falling."""
        # A longer or more concentrated prompt than any that was measured is not taken to be better than those.
        length = self.length * math.log(max(1, min(prompt_tokens, self.prompt_tokens[1])))
        # The mean of t^b for t up to the number of tokens.
        position = self.position * math.log(max(1, tokens)) - math.log1p(self.position)
        found: list[float] = []
        for constant, share, least in zip(self.constants, removed, self.least_removed, strict=True):
            exponent = constant + length + position + self.removed * math.log(max(share, least, LEAST_REMOVED))
            found.append(max(math.exp(min(exponent, 700.0)), *found[-1:], 0.0))
        return found

    def _between(self, found: Sequence[float], sparsity: float) -> float:
        left, below = 0.0, 0.0
        for right, above in zip(self.sparsities, found, strict=True):
            if sparsity <= right + 1e-9:
                return below + (above - below) * (sparsity - left) / (right - left)
            left, below = right, above
        return math.inf

    def packed(self, model: str) -> bytes:
        """As a file, for the model of that ``calibration.identity``."""
        return json.dumps({"edition": EDITION, "model": model, **asdict(self)}, indent=1).encode()

    @classmethod
    def read(cls, path: Path, model: str) -> "LossTable | None":
        """What was packed there for that model; None if there is nothing, or it is another model's.

        Raises:
            LoadError: the file is damaged.
        """
        if not path.exists():
            return None
        try:
            facts: dict[str, Any] = json.loads(path.read_bytes())
            if (facts.pop("edition"), facts.pop("model")) != (EDITION, model):
                return None
            return cls(**facts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"'{path}' is damaged; delete it and run tune again ({error})") from error
