"""What a request may choose about the drawing of tokens, and what is reported of the choice."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Divided by less, differences of logits leave the range of fp32.
GREEDY_BELOW = 1e-5
# Beyond it, penalties times counts, or logits over a temperature, leave the range of fp32.
LARGEST = 1e30
# Alternatives that can be reported of one token: room for them is made once.
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """One sequence's choices. The names and meanings are those of OpenAI and vLLM.

    temperature: 0 (or below 1e-5) is greedy; otherwise logits are divided by it.
    top_p: keep the smallest set of tokens whose probabilities reach it, 0 to 1; one token always stays.
    top_k: keep that many tokens; 0 keeps all, and so does a number above the vocabulary.
    min_p: keep tokens at least that fraction as probable as the most probable one.
    presence_penalty: subtracted once from the logit of each token generated so far.
    frequency_penalty: subtracted from it for each time the token was generated.
    repetition_penalty: logits of tokens in the prompt or generated are divided by it, negative ones multiplied.
    logit_bias: added to the logits of single tokens, by id.
    seed: any integer; makes draws repeatable. None draws differently each time.
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
        self._require("temperature", 0 <= self.temperature <= LARGEST, f"0 to {LARGEST:g}")
        self._require("top_p", 0 <= self.top_p <= 1, "between 0 and 1")
        self._require("top_k", self.top_k >= 0, "0 or more")
        self._require("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._require("presence_penalty", abs(self.presence_penalty) <= LARGEST, f"at most {LARGEST:g} in size")
        self._require("frequency_penalty", abs(self.frequency_penalty) <= LARGEST, f"at most {LARGEST:g} in size")
        self._require("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100")
        biases = all(id >= 0 and abs(bias) <= LARGEST for id, bias in self.logit_bias.items())
        self._require("logit_bias", biases, f"numbers of at most {LARGEST:g} in size, by token ids from 0")
        self._require("stop_token_ids", min(self.stop_token_ids, default=0) >= 0, "ids from 0")
        self._require("max_tokens", self.max_tokens >= 1, "1 or more")
        self._require("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens")
        wanted = 0 if self.logprobs is None else self.logprobs
        self._require("logprobs", 0 <= wanted <= MOST_LOGPROBS, f"None, or 0 to {MOST_LOGPROBS}")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {allowed}, but is {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, and nothing is drawn."""
        return self.temperature < GREEDY_BELOW


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
