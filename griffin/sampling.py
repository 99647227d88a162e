"""How the next token is drawn, and when to stop drawing."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

# Divided by less, differences of logits leave the range of fp32.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's choices. The names and meanings are those of OpenAI and vLLM.

    temperature: 0 (or below 1e-5) is greedy; otherwise logits are divided by it.
    top_p: keep the smallest set of tokens whose probabilities reach it, 0 < top_p <= 1.
    top_k: keep that many tokens; 0 keeps all.
    min_p: keep tokens at least that fraction as probable as the most probable one.
    seed: makes draws repeatable; None draws differently each time.
    max_tokens: at most that many tokens are generated.
    stop_token_ids: end after any of these, besides the model's own end-of-sequence ids.
    ignore_eos: go on through end-of-sequence ids, for runs of a fixed length.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._require("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "0 or more")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("top_k", self.top_k >= 0, "0 or more")
        self._require("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._require("max_tokens", self.max_tokens >= 1, "1 or more")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {allowed}, but is {getattr(self, name)}")

    def generator(self, device: torch.device) -> Generator:
        """A random stream of this request's own."""
        return seeded_generator(self.seed, device)


def seeded_generator(seed: int | None, device: torch.device) -> Generator:
    """A stream that repeats by its seed, or that nobody can repeat."""
    generator = Generator(device)
    if seed is None:
        generator.seed()
    else:
        # Any integer is mapped onto the 64 bits that torch takes. (Its CPU generator uses the lower 32 of them.)
        generator.manual_seed(seed % 2**63)
    return generator


def sample(logits_V: Tensor, sampling: Sampling, generator: Generator) -> int:
    """The id of the next token.

    Args:
        logits_V: ``(vocabulary,)``, any float dtype.
    """
    if sampling.temperature < GREEDY_BELOW:
        return int(logits_V.argmax())
    probabilities_V = filtered_probabilities(logits_V, sampling)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


def logprob(logits_V: Tensor, token_id: int) -> float:
    """Log-probability of a token under the model itself, before temperature and filters."""
    logits_V = logits_V.float()
    return float(logits_V[token_id] - logits_V.logsumexp(dim=0))


def filtered_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then top_k, top_p and min_p, each on what the one before left. Sums to 1, fp32 ``(V,)``."""
    logits_V = logits_V.float()
    logits_V = (logits_V - logits_V.max()) / sampling.temperature
    if 0 < sampling.top_k < logits_V.numel():
        logits_V = apply_top_k(logits_V, sampling.top_k)
    if sampling.top_p < 1:
        logits_V = apply_top_p(logits_V, sampling.top_p)
    if sampling.min_p > 0:
        logits_V = apply_min_p(logits_V, sampling.min_p)
    return logits_V.softmax(dim=0)


def apply_top_k(logits_V: Tensor, k: int) -> Tensor:
    # By index, not by value: of equal logits, too, only k stay.
    highest = logits_V.topk(k)
    return torch.full_like(logits_V, -math.inf).scatter_(0, highest.indices, highest.values)


def apply_top_p(logits_V: Tensor, p: float) -> Tensor:
    ordered, order = logits_V.sort(descending=True, stable=True)
    probabilities = ordered.softmax(dim=0)
    # A token goes when those ahead of it already reach p; the first therefore always stays.
    beyond = probabilities.cumsum(dim=0) - probabilities >= p
    beyond[0] = False
    return logits_V.masked_fill(torch.empty_like(beyond).scatter_(0, order, beyond), -math.inf)


def apply_min_p(logits_V: Tensor, p: float) -> Tensor:
    return logits_V.masked_fill(logits_V < logits_V.max() + math.log(p), -math.inf)
