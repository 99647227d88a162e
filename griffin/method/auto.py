"""Sparsity auto: the largest sparsity whose predicted loss on a request stays within a limit.

The loss is the KL divergence of the pruned model from the full one, in nats per generated token. It is predicted as a
product of powers,

    KL(sparsity) = exp(c) * prompt_tokens^a * position^b * removed^d,

with one c for each measured sparsity. ``removed`` is the loss that a method sees on the prompt, see ``Method.removed``;
it is small if a few neurons produce nearly all of the output. Between measured sparsities, and down to 0 at sparsity 0,
the prediction is linear.

``griffin tune`` fits c, a, b and d for one model, on a user's prompts. A method that loses about the same on every
model and prompt also has a table of usual losses, which needs no measurement.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from griffin.errors import LoadError
from griffin.request import Auto

# Raise this when older files would be read wrongly.
EDITION = 3
# Chosen sparsities are multiples of this, so that metrics have few series.
STEP = 0.05
# Smaller values count as this one before taking the logarithm: kept neurons may hold the whole statistic.
LEAST_REMOVED = 1e-6


@dataclass(frozen=True, slots=True)
class Outlook:
    """The decision for one prompt.

    sparsity: the largest one within the limit.
    divergence: the KL divergence predicted for it, in nats per token.
    limit: the request's limit, in nats per token.
    """

    sparsity: float
    divergence: float
    limit: float


@dataclass(frozen=True, slots=True)
class LossTable:
    """Losses measured for one model with one method.

    method: the method's name.
    sparsities: ascending, above 0.
    constants: c for each sparsity.
    length, position, removed: the powers a, b and d.
    prompt_tokens: tokens of the shortest and of the longest measured prompt.
    least_removed: for each sparsity, the smallest ``removed`` of all measured prompts.
    tokens: tokens of the longest measured answer.
    spread: standard deviation of log(found / predicted), on prompts that the fit did not use.
    prompts: number of measured prompts.
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

    @classmethod
    def usual(cls, method: str, divergences: Mapping[float, float], *, spread: float, prompts: int) -> "LossTable":
        """A table that predicts by sparsity alone, for any model and prompt.

        Args:
            divergences: KL divergence by sparsity; sparsities ascend.
            spread: standard deviation of log(found / predicted), on models that the fit did not use.
            prompts: number of prompts of all models together.
        """
        constants = [math.log(divergence) for divergence in divergences.values()]
        return cls(method, [*divergences], constants, 0, 0, 0, (1, 1), [1] * len(constants), 1, spread, prompts)

    def outlook(self, auto: Auto, prompt_tokens: int, removed: Sequence[float]) -> Outlook:
        """The largest multiple of ``STEP`` within the limit; 0 if none is.

        Args:
            removed: for each of ``sparsities``, on this prompt.
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
        """The predicted divergence at each sparsity, a mean over ``tokens`` generated tokens; never falling."""
        # A prompt longer or more concentrated than the measured ones is not expected to do better than they did.
        length = self.length * math.log(max(1, min(prompt_tokens, self.prompt_tokens[1])))
        # The mean of t^b over t = 1 to the number of tokens.
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
        """The table as the bytes of a file, for the model with this ``model.identity``."""
        return json.dumps({"edition": EDITION, "model": model, **asdict(self)}, indent=1).encode()

    @classmethod
    def read(cls, path: Path, model: str) -> "LossTable | None":
        """The table in a file; None if there is no file, or the file is for another model.

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
