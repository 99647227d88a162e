"""How the next token is drawn, and when to stop drawing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

# Divided by less, differences of logits leave the range of fp32.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sampling:
    """One sequence's choices. The names and meanings are those of OpenAI and vLLM.

    temperature: 0 (or below 1e-5) is greedy; otherwise logits are divided by it.
    top_p: keep the smallest set of tokens whose probabilities reach it, 0 < top_p <= 1.
    top_k: keep that many tokens; 0 keeps all.
    min_p: keep tokens at least that fraction as probable as the most probable one.
    presence_penalty: subtracted once from the logit of each token generated so far.
    frequency_penalty: subtracted from it for each time the token was generated.
    repetition_penalty: logits of tokens in the prompt or generated are divided by it, negative ones multiplied.
    logit_bias: added to the logits of single tokens, by id.
    seed: makes draws repeatable; None draws differently each time.
    max_tokens: at most that many tokens are generated.
    min_tokens: nothing ends the sequence before it has that many.
    stop_token_ids: end after any of these, besides the model's own end-of-sequence ids.
    ignore_eos: go on through end-of-sequence ids, for runs of a fixed length.
    logprobs: report each token's log-probability, and those of that many most probable tokens; None reports none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._require("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "0 or more")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("top_k", self.top_k >= 0, "0 or more")
        self._require("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._require("presence_penalty", math.isfinite(self.presence_penalty), "a finite number")
        self._require("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number")
        self._require("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100")
        self._require("logit_bias", all(map(math.isfinite, self.logit_bias.values())), "finite numbers by token id")
        self._require("max_tokens", self.max_tokens >= 1, "1 or more")
        self._require("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens")
        self._require("logprobs", self.logprobs is None or self.logprobs >= 0, "None, or 0 or more")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {allowed}, but is {getattr(self, name)}")

    def generator(self, device: torch.device) -> Generator:
        """A random stream of this sequence's own."""
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


class Sampler:
    """Draws one sequence's tokens, and remembers them for the penalties."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        end_ids: Iterable[int],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            prompt_ids: what repetition_penalty counts as seen from the start.
            end_ids: what min_tokens keeps from being drawn too soon.
            vocabulary: number of logits.
        """
        self._sampling = sampling
        self._generator = sampling.generator(device)
        self._drawn = 0
        self._bias = _ids_and_values(sampling.logit_bias, device)
        ends = sorted(id for id in end_ids if id < vocabulary)
        self._end_ids = torch.tensor(ends, dtype=torch.long, device=device)
        self._counts_V = self._seen_V = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts_V = torch.zeros(vocabulary, dtype=torch.float32, device=device)
        if sampling.repetition_penalty != 1:
            self._seen_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen_V[torch.tensor(prompt_ids, dtype=torch.long, device=device)] = True
        # Whether anything is ever added to the model's own logits.
        self._adjusts = any(part is not None for part in (self._bias, self._counts_V, self._seen_V))

    def draw(self, logits_V: Tensor) -> int:
        """The id of the next token."""
        id = sample(self._adjusted(logits_V), self._sampling, self._generator)
        self._drawn += 1
        if self._counts_V is not None:
            self._counts_V[id] += 1
        if self._seen_V is not None:
            self._seen_V[id] = True
        return id

    def _adjusted(self, logits_V: Tensor) -> Tensor:
        too_soon = self._drawn < self._sampling.min_tokens
        if not self._adjusts and not too_soon:
            return logits_V
        # In vLLM's order: bias, then repetition, frequency and presence.
        logits_V = logits_V.float().clone()
        if self._bias is not None:
            logits_V.index_add_(0, *self._bias)
        if self._seen_V is not None:
            penalty = self._sampling.repetition_penalty
            penalised_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
            logits_V = torch.where(self._seen_V, penalised_V, logits_V)
        if self._counts_V is not None:
            logits_V -= self._sampling.frequency_penalty * self._counts_V
            logits_V -= self._sampling.presence_penalty * (self._counts_V > 0)
        if too_soon:
            logits_V[self._end_ids] = -math.inf
        return logits_V


def _ids_and_values(bias: Mapping[int, float], device: torch.device) -> tuple[Tensor, Tensor] | None:
    if not bias:
        return None
    ids = torch.tensor(list(bias), dtype=torch.long, device=device)
    return ids, torch.tensor(list(bias.values()), dtype=torch.float32, device=device)


def sample(logits_V: Tensor, sampling: Sampling, generator: Generator) -> int:
    """The id of the next token.

    Args:
        logits_V: ``(vocabulary,)``, any float dtype.
    """
    if sampling.temperature < GREEDY_BELOW:
        return int(logits_V.argmax())
    probabilities_V = filtered_probabilities(logits_V, sampling)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities at one position, under the model itself: before bias, penalties, temperature and filters.

    chosen: of the token that stands there.
    top: ids and log-probabilities of the most probable tokens, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs(logits_CV: Tensor, ids_C: Tensor, top: int) -> list[Logprobs]:
    """For each of C positions: its token's log-probability and those of the ``top`` most probable ones.

    Of the same logit the same float comes out, so a most probable token is recognised by equality.
    """
    logits_CV = logits_CV.float()
    normalisers_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
    chosen_C = (logits_CV.gather(1, ids_C[:, None]) - normalisers_C1)[:, 0].tolist()
    if not top:
        return [Logprobs(value) for value in chosen_C]
    highest = logits_CV.topk(min(top, logits_CV.shape[1]))
    rows = zip(chosen_C, highest.indices.tolist(), (highest.values - normalisers_C1).tolist(), strict=True)
    return [Logprobs(value, tuple(zip(ids, values, strict=True))) for value, ids, values in rows]


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
