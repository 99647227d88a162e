"""Tokens drawn from logits on the device, without the host.

All choices of a request are in tensors at fixed addresses. So the same operations, captured once in a CUDA graph, draw
for any request. A draw depends only on the seed, the place in the sequence and the logits, not on the device or on
graphs.

Shapes: V vocabulary.
"""

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin.constraint import Constraint
from griffin.decode.logprobs import Logprobs
from griffin.decode.masks import Masks
from griffin.request import MOST_LOGPROBS, Sampling

# top_p is applied to so many highest tokens first, which is faster than sorting all tokens.
NUCLEUS = 1024
LOW_32_BITS = 0xFFFFFFFF
# More than any context holds, and within the range of the tensors that count tokens.
MOST_TOKENS = 2**62


@dataclass(frozen=True, slots=True)
class Kind:
    """The operations that a request needs. A kind with more operations serves it too, at their cost."""

    adjusted: bool = True
    sampled: bool = True
    filtered: bool = True
    logprobs: bool = True

    def covers(self, other: "Kind") -> bool:
        """Whether it has all operations of another kind."""
        return (
            self.adjusted >= other.adjusted
            and self.sampled >= other.sampled
            and self.filtered >= other.filtered
            and self.logprobs >= other.logprobs
        )


GREEDY = Kind(adjusted=False, sampled=False, filtered=False, logprobs=False)
PLAIN = Kind(adjusted=False, sampled=True, filtered=False, logprobs=False)
EVERYTHING = Kind()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token on the host.

    logprobs: if requested.
    complete: whether the grammar has ended with this token, so that no token may follow.
    """

    id: int
    logprobs: Logprobs | None = None
    complete: bool = False


class Sampler:
    """Draws the tokens of one sequence after another.

    With a grammar, the host waits for each token and tells the constraint, until the constraint is done.

    id: int64 ``(1,)``, the latest token.
    kind: the operations that the current sequence needs.
    """

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        def scalar(dtype: torch.dtype) -> Tensor:
            return torch.zeros(1, dtype=dtype, device=device)

        self.id = scalar(torch.int64)
        self.kind = GREEDY
        self._masks = Masks(vocabulary, device)
        self._top = 0
        self._count = scalar(torch.int64)
        self._keys = torch.zeros(2, dtype=torch.int64, device=device)
        self._noise_scale, self._temperature = scalar(torch.float32), scalar(torch.float32)
        self._top_k, self._min_tokens = scalar(torch.int64), scalar(torch.int64)
        self._top_p, self._min_p = scalar(torch.float32), scalar(torch.float32)
        self._presence, self._frequency = scalar(torch.float32), scalar(torch.float32)
        self._repetition = scalar(torch.float32)
        self._bias_V = torch.zeros(vocabulary, dtype=torch.float32, device=device)
        self._counts_V = torch.zeros_like(self._bias_V)
        self._seen_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._ends_V = torch.zeros_like(self._seen_V)
        self._ranks_V = torch.arange(vocabulary, device=device)
        self._marked = tuple(torch.zeros_like(state) for state in self._state())
        self._chosen = scalar(torch.float32)
        self._top_ids = torch.zeros(min(MOST_LOGPROBS, vocabulary), dtype=torch.int64, device=device)
        self._top_logprobs = torch.zeros(len(self._top_ids), dtype=torch.float32, device=device)

    @property
    def constraint(self) -> Constraint | None:
        """The current sequence's constraint, if it has a grammar that may still refuse a token."""
        return self._masks.constraint

    @torch.inference_mode()
    def load(self, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]) -> None:
        """Begin a sequence.

        Args:
            prompt_ids: repetition_penalty counts these as seen.
            end_ids: min_tokens forbids these at first.
        """
        self._masks.begin(sampling.grammar)
        self._count.zero_()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._keys.copy_(torch.tensor(_keys(seed)))
        self._noise_scale.fill_(0.0 if sampling.greedy else 1.0)
        self._temperature.fill_(1.0 if sampling.greedy else sampling.temperature)
        vocabulary = len(self._ranks_V)
        top_k = min(sampling.top_k, vocabulary)
        self._top_k.fill_(top_k or vocabulary)
        # Because of rounding, the sum of all probabilities may be slightly above 1.
        self._top_p.fill_(sampling.top_p if sampling.top_p < 1 else math.inf)
        self._min_p.fill_(sampling.min_p)
        self._load_adjustments(sampling, prompt_ids, end_ids)
        self._top = sampling.logprobs or 0
        self._limits = (top_k, sampling.top_p, sampling.min_p)
        filtered = bool(top_k or sampling.top_p < 1 or sampling.min_p)
        self.kind = Kind(
            adjusted=_adjusts(sampling),
            sampled=not sampling.greedy,
            filtered=filtered and not sampling.greedy,
            logprobs=sampling.logprobs is not None,
        )

    def _load_adjustments(self, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]) -> None:
        for used in (self._bias_V, self._counts_V, self._seen_V, self._ends_V):
            used.zero_()
        self._presence.fill_(sampling.presence_penalty)
        self._frequency.fill_(sampling.frequency_penalty)
        self._repetition.fill_(sampling.repetition_penalty)
        self._min_tokens.fill_(min(sampling.min_tokens, MOST_TOKENS))
        device = self.id.device
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=device)
            self._bias_V[ids] = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32, device=device)
        if sampling.repetition_penalty != 1:
            self._seen_V[torch.tensor(prompt_ids, dtype=torch.long, device=device)] = True
        if sampling.min_tokens:
            ends = sorted(id for id in end_ids if id < len(self._ranks_V))
            self._ends_V[torch.tensor(ends, dtype=torch.long, device=device)] = True

    def prepare(self) -> None:
        """Find out which tokens may come next while something else computes. ``draw`` or ``take`` must follow."""
        self._masks.prepare()

    @torch.inference_mode()
    def draw(self, logits_V: Tensor, kind: Kind | None = None) -> None:
        """Draw the next token into ``id``, and its log-probabilities beside it. The host does not wait for the device.

        A token that a grammar forces is taken instead. It counts as a draw, so that further draws are the same.

        Args:
            logits_V: any float dtype; they are not changed.
            kind: the operations to run, for a graph that serves many requests; it must cover ``self.kind``. None runs
                only those that are needed.
        """
        if (forced := self._masks.forced()) is not None:
            self.take(forced, logits_V)
            return
        kind, captured = kind or self.kind, kind is not None
        own_V, allowed_V = logits_V.float(), self._masks.allowed()
        scores_V = self._adjusted(own_V) if kind.adjusted else own_V
        if allowed_V is not None:
            scores_V = scores_V.masked_fill(~allowed_V, -math.inf)
        if kind.sampled:
            scores_V = (scores_V - scores_V.max()) / self._temperature
        if not kind.sampled:
            id = scores_V.argmax(dim=0, keepdim=True)
        elif not kind.filtered:
            id = (scores_V + self._noise()).argmax(dim=0, keepdim=True)
        else:
            scores, order = self._all_sorted(scores_V) if captured else self._highest(scores_V)
            left = self._filtered(scores, scores_V if not captured else None)
            id = order[(left + self._noise()[order]).argmax(dim=0, keepdim=True)]
        self.id.copy_(id)
        self._settle(own_V, kind, captured)

    @torch.inference_mode()
    def take(self, id: int, logits_V: Tensor) -> None:
        """Use this as the next token, as if it had been drawn from these logits."""
        self.id.fill_(id)
        self._settle(logits_V.float() if self.kind.logprobs else logits_V, self.kind, captured=False)

    @torch.inference_mode()
    def mark(self) -> None:
        """Remember this place for ``back``; an earlier mark is forgotten. The host does not wait for the device."""
        self._masks.mark()
        for marked, state in zip(self._marked, self._state(), strict=True):
            marked.copy_(state)

    @torch.inference_mode()
    def back(self) -> None:
        """Undo what was drawn and taken since the mark. The next draw is the same as it was there."""
        self._masks.back()
        for marked, state in zip(self._marked, self._state(), strict=True):
            state.copy_(marked)

    def _state(self) -> tuple[Tensor, ...]:
        return self.id, self._count, self._counts_V, self._seen_V

    def _settle(self, logits_V: Tensor, kind: Kind, captured: bool) -> None:
        """Count ``id`` as the next token, and report it if requested."""
        self._count += 1
        if kind.adjusted:
            self._counts_V[self.id] += 1
            self._seen_V[self.id] = True
        if kind.logprobs:
            self._report(logits_V, len(self._top_ids) if captured else min(self._top, len(self._top_ids)))
        if self.constraint is not None:
            self.constraint.advance(int(self.id))

    def drawn(self) -> Drawn:
        """The latest token. The host waits for it."""
        return self.read(self.results())

    def results(self, everything: bool = False) -> tuple[Tensor, ...]:
        """The tensors in which ``draw`` leaves its results.

        Args:
            everything: all that any sequence may need; otherwise what the current one needs.
        """
        if not self.kind.logprobs and not everything:
            return (self.id,)
        return self.id, self._chosen, self._top_ids, self._top_logprobs

    def read(self, results: Sequence[Tensor]) -> Drawn:
        """The token that ``results`` of this sequence, or copies of them, hold."""
        id, complete = int(results[0]), self.constraint is not None and self.constraint.ended
        if len(results) == 1:
            return Drawn(id, complete=complete)
        top = zip(results[2][: self._top].tolist(), results[3][: self._top].tolist(), strict=True)
        return Drawn(id, Logprobs(float(results[1]), tuple(top)), complete)

    def _adjusted(self, logits_V: Tensor) -> Tensor:
        # In vLLM's order: bias, then repetition, frequency and presence.
        scores_V = logits_V + self._bias_V
        penalised_V = torch.where(scores_V > 0, scores_V / self._repetition, scores_V * self._repetition)
        scores_V = torch.where(self._seen_V, penalised_V, scores_V)
        scores_V = scores_V - self._frequency * self._counts_V - self._presence * (self._counts_V > 0)
        too_soon_V = self._ends_V & (self._count < self._min_tokens)
        return scores_V.masked_fill(too_soon_V, -math.inf)

    def _all_sorted(self, scores_V: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens by rank; those beyond top_k cannot be drawn."""
        scores, order = scores_V.sort(descending=True, stable=True)
        return scores.masked_fill(self._ranks_V >= self._top_k, -math.inf), order

    def _highest(self, scores_V: Tensor) -> tuple[Tensor, Tensor]:
        """At least as many highest tokens as the filters can leave. The host may wait for the device here."""
        top_k, top_p, min_p = self._limits
        if 0 < top_k <= NUCLEUS:
            return scores_V.topk(min(top_k, len(scores_V)))
        if not top_k and len(scores_V) > NUCLEUS:
            highest = scores_V.topk(NUCLEUS)
            scores = highest.values
            # All other tokens are below min_p, or come after those that reach top_p.
            if min_p and scores[-1] < scores[0] + math.log(min_p):
                return highest
            if top_p < 1 and (scores - scores_V.logsumexp(0)).exp().sum() > top_p:
                return highest
        return self._all_sorted(scores_V)

    def _filtered(self, scores: Tensor, all_V: Tensor | None) -> Tensor:
        """top_p and then min_p on ordered scores; the first token always stays."""
        whole = scores if all_V is None or self._limits[0] else all_V
        probabilities = (scores - whole.logsumexp(0)).exp()
        ahead = probabilities.cumsum(0) - probabilities
        out = (ahead >= self._top_p) | (scores < scores[0] + self._min_p.log())
        out[0] = False
        return scores.masked_fill(out, -math.inf)

    def _noise(self) -> Tensor:
        """Gumbel noise ``(V,)``: the highest of log-probability + noise is a draw (Gumbel, 1954)."""
        # A counter-based stream: the count is mixed into the key, then each token's number is hashed with the key.
        key = _hashed(self._count + self._keys[0], self._keys[1])
        bits_V = _hashed(self._ranks_V + key, self._keys[0]) >> 9
        # Adding a half keeps the number above 0 and below 1 in fp32.
        uniform_V = (bits_V.float() + 0.5) * 2.0**-23
        return -torch.log(-torch.log(uniform_V)) * self._noise_scale

    def _report(self, logits_V: Tensor, top: int) -> None:
        normaliser = logits_V.logsumexp(0, keepdim=True)
        torch.sub(logits_V[self.id], normaliser, out=self._chosen)
        if top:
            highest = logits_V.topk(top)
            self._top_ids[:top] = highest.indices
            self._top_logprobs[:top] = highest.values - normaliser


def _adjusts(sampling: Sampling) -> bool:
    return bool(
        sampling.logit_bias
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1
        or sampling.min_tokens
    )


def _keys(seed: int) -> list[int]:
    """Two keys of 32 bits from any integer: steps of splitmix64 (Steele, Lea, Flood, 2014)."""
    keys = []
    for step in (1, 2):
        mixed = (seed + step * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        keys.append((mixed ^ mixed >> 31) & LOW_32_BITS)
    return keys


def _hashed(values: Tensor, key: Tensor) -> Tensor:
    """Hash numbers of 32 bits, in int64: two rounds of multiply and shift, with the key between them."""
    values = values * 0x9E3779B1 & LOW_32_BITS
    values = (values ^ values >> 16) * 0x21F0AAAD & LOW_32_BITS
    values = (values ^ values >> 15 ^ key) * 0x735A2D97 & LOW_32_BITS
    values = (values ^ values >> 16) * 0x85EBCA6B & LOW_32_BITS
    return values ^ values >> 15
