"""Sparsity auto: the largest sparsity whose predicted loss on a request stays within a limit.

The loss is the KL divergence of the pruned model from the full one, in nats per generated token. It is predicted as a
product of powers,

    KL(sparsity) = exp(c) * prompt_tokens^a * position^b * removed^d,

with a c for each measured sparsity. ``removed`` is what a method says that is lost on the prompt, see
``Method.removed``: little if a few neurons give nearly all. Between the measured sparsities, and from 0 at
sparsity 0, the prediction is linear.

``griffin tune`` finds c, a, b and d for one model, on a user's prompts. A method that loses about as much on every
model and prompt has a table of usual losses besides, which needs no measurement.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from griffin.errors import LoadError
from griffin.request import Auto

# Raised when older files would be read wrongly.
EDITION = 3
# Chosen sparsities are multiples of this, so that metrics by sparsity stay few.
STEP = 0.05
# The logarithm of a smaller value is taken as that of this one: a statistic may be all on the kept neurons.
LEAST_REMOVED = 1e-6


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was decided for one prompt.

    sparsity: the largest within the limit.
    divergence: the KL divergence predicted for it, in nats per token.
    limit: that the request set, in nats per token.
    """

    sparsity: float
    divergence: float
    limit: float


@dataclass(frozen=True, slots=True)
class LossTable:
    """What was measured of one model with one method.

    method: its name.
    sparsities: rising, above 0.
    constants: c for each sparsity.
    length, position, removed: the powers a, b and d.
    prompt_tokens: how many the shortest and the longest measured prompt had.
    least_removed: for each sparsity the smallest ``removed`` of any measured prompt.
    tokens: how many the longest measured answer had.
    spread: the standard deviation of log(found / predicted) on prompts that were left out of the fit.
    prompts: how many were measured.
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
        """Losses by sparsity alone, whatever the model and the prompt.

        Args:
            divergences: by sparsity, which rises.
            spread: the standard deviation of log(found / predicted) on models that were left out.
            prompts: of all models together.
        """
        constants = [math.log(divergence) for divergence in divergences.values()]
        return cls(method, [*divergences], constants, 0, 0, 0, (1, 1), [1] * len(constants), 1, spread, prompts)

    def outlook(self, auto: Auto, prompt_tokens: int, removed: Sequence[float]) -> Outlook:
        """The largest multiple of ``STEP`` within the limit, or 0.

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
        """The predicted divergence for each of ``sparsities``, a mean over so many generated tokens; never falling."""
        # A prompt beyond the measured ones, longer or more concentrated, is not expected to do better than those.
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
        """The bytes of a file, for the model of this ``model.identity``."""
        return json.dumps({"edition": EDITION, "model": model, **asdict(self)}, indent=1).encode()

    @classmethod
    def read(cls, path: Path, model: str) -> "LossTable | None":
        """The table in a file; None if there is no file, or it is another model's.

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
