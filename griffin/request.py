"""What a request may choose: how tokens are drawn, which neurons stay, what is verified, what is scored.

The checks here need no model. Fields that the HTTP API also has keep their name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Generator

from griffin.constraint import Grammar
from griffin.neurons import Selection, kept_count
from griffin.thresholds import Shares

# Divided by a smaller temperature, differences of logits exceed the range of fp32.
GREEDY_BELOW = 1e-5
# Larger values would take penalties times counts, or logits over a temperature, out of the range of fp32.
LARGEST = 1e30
# The most alternatives that one token can report. Buffers have room for so many.
MOST_LOGPROBS = 20

MethodName = Literal["griffin", "griffin+"]
METHOD_NAMES: tuple[MethodName, ...] = get_args(MethodName)
# The default of the server and of ``tune``. A ``Pruning`` that names no method uses the paper's.
DEFAULT_METHOD: MethodName = "griffin+"
StatisticName = Literal["flocking", "magnitude"]
STATISTICS: tuple[StatisticName, ...] = get_args(StatisticName)
StrategyName = Literal["top_k", "sample", "top_k_sample"]
STRATEGY_NAMES: tuple[StrategyName, ...] = get_args(StrategyName)
# The fields of ``Pruning`` that configure a method. ``griffin.method.methods`` has the methods.
METHOD_FIELDS: dict[MethodName, tuple[str, ...]] = {"griffin": ("selection", "statistic"), "griffin+": ()}
# How the paper picks neurons; the default for both fields.
STANDARD = {"selection": "top_k", "statistic": "flocking"}
ModeName = Literal["fast", "guarded", "lossless"]
DraftName = Literal["none", "ngram", "pruned", "both"]
MODES: tuple[ModeName, ...] = get_args(ModeName)
# Most draft tokens of one block. The full model reads a block in one pass and holds all its logits at once.
MOST_DRAFT_TOKENS = 64
# Sources of drafts in each mode. The last one is the default.
MODE_DRAFTS: dict[ModeName, tuple[DraftName, ...]] = {
    "fast": ("none", "ngram"),
    "guarded": ("pruned", "ngram", "both"),
    "lossless": ("pruned", "ngram", "both"),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one sequence are drawn. Names and meanings are those of OpenAI and vLLM.

    temperature: 0 (or below 1e-5) is greedy; otherwise logits are divided by it.
    top_p: keep the smallest set of tokens whose probabilities add up to it, 0 to 1; one token always stays.
    top_k: keep so many tokens; 0, or a number above the vocabulary, keeps all.
    min_p: keep tokens whose probability is at least this fraction of the highest one.
    presence_penalty: subtracted once from the logit of each token generated so far.
    frequency_penalty: subtracted from the logit once for each time the token was generated.
    repetition_penalty: positive logits of tokens in the prompt or answer are divided by it, negative ones multiplied.
    logit_bias: added to the logits of single tokens, by id.
    seed: any integer; makes draws repeatable. None draws differently each time.
    max_tokens: most tokens to generate.
    min_tokens: the sequence does not end before it has so many.
    stop_token_ids: ids that end the sequence, besides the model's own end-of-sequence ids.
    ignore_eos: continue after end-of-sequence ids, for runs of a fixed length.
    logprobs: report the log-probability of each token and of so many most probable tokens; None reports none.
    grammar: the answer follows it, and ends where it ends. None allows any answer.
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
    grammar: Grammar | None = None

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
        self._require("min_tokens", not (self._may_end and self.min_tokens), "0 with a grammar, which may end earlier")
        self._require("ignore_eos", not (self._may_end and self.ignore_eos), "False with a grammar, which has an end")
        wanted = 0 if self.logprobs is None else self.logprobs
        self._require("logprobs", 0 <= wanted <= MOST_LOGPROBS, f"None, or 0 to {MOST_LOGPROBS}")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {allowed}, but is {getattr(self, name)}")

    @property
    def _may_end(self) -> bool:
        """Whether a grammar may end the answer."""
        return self.grammar is not None and self.grammar.ends

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, so that nothing is drawn."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class Auto:
    """Sparsity auto: the largest sparsity whose predicted loss stays within a limit.

    limit: the largest allowed KL divergence from the full model in nats, predicted as a mean over the generated tokens.
    tokens: most tokens that will be generated; None assumes answers as long as the measured ones.
    """

    limit: float
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Pruning:
    """What the tokens of one request read.

    sparsity: the fraction of FF weights that a generated token does not read, 0 <= sparsity < 1; 0 is the dense model.
    selection: the strategy that picks neurons by the statistic.
    statistic: the statistic that ranks neurons.
    seed: for strategies that draw; None draws differently each time.
    method: griffin is the paper's method; griffin+ loses less with the same number of active parameters, see
        ``method.griffin_plus``. The default here is griffin, which has a selection and a statistic and also runs on
        streamed weights. Servers have their own default.
    reuse: the choice for another prompt, used unchanged.
    auto: find the sparsity after the prompt was read.
    """

    sparsity: float = 0.0
    selection: StrategyName = "top_k"
    statistic: StatisticName = "flocking"
    seed: int | None = None
    method: MethodName = "griffin"
    reuse: Selection | None = None
    auto: Auto | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, but is {self.sparsity}")
        if self.selection not in STRATEGY_NAMES:
            raise ValueError(f"selection must be one of {', '.join(STRATEGY_NAMES)}, but is {self.selection!r}")
        if self.statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, but is {self.statistic!r}")
        if self.method not in METHOD_NAMES:
            raise ValueError(f"method must be one of {', '.join(METHOD_NAMES)}, but is {self.method!r}")
        if not set(self._not_standard()) <= set(METHOD_FIELDS[self.method]):
            raise ValueError(f"method {self.method} chooses by itself: leave out selection and statistic")
        if self.auto and (self.sparsity or self.reuse or self._not_standard()):
            raise ValueError("auto uses the prompt's statistic: leave out sparsity, selection, statistic and reuse")

    def _not_standard(self) -> list[str]:
        return [name for name, value in STANDARD.items() if getattr(self, name) != value]

    def prunes(self, width: int) -> bool:
        """Whether a generated token leaves out any neuron. Only this function decides it.

        A small sparsity may round to all neurons. Before auto has found its sparsity, the answer is True.

        Args:
            width: F, the FF neurons in each layer of the model.
        """
        if self.reuse is not None:
            return self.reuse.chosen.shares(width) != Shares(1, 1, 1)
        return self.auto is not None or kept_count(width, self.sparsity) < width

    @property
    def follows_text(self) -> bool:
        """Whether the text alone decides which neurons are kept, so that they can be chosen again as it grows."""
        return self.reuse is None and not self._not_standard()

    def generator(self) -> Generator:
        """A generator with the same numbers on every device: repeatable with a seed, otherwise different each time."""
        generator = Generator()
        if self.seed is None:
            generator.seed()
        else:
            # torch takes 64 bits, so any integer is mapped to 64 bits. Here torch uses the lower 32.
            generator.manual_seed(self.seed % 2**63)
        return generator


@dataclass(frozen=True, slots=True)
class Verification:
    """How tokens are drafted, and checked in passes over several tokens.

    mode: which model checks drafts, and what becomes of the kept neurons' tokens.
        fast accepts them as they are (the paper). Drafts are n-grams only, and the kept neurons check them: the answer
        is the same as without drafts.
        guarded: the full model reads every few tokens in one pass. It keeps those that it finds acceptable and
        continues from the first one that it does not (Sirius, Zhou et al. 2024).
        lossless keeps those that the full model would have drawn too: token by token the full model's own answer. If
        the step reads several tokens in one pass, this is exactly the answer of sparsity 0. Other steps use the
        model's own code for a pass. Below float32 it rounds sums differently, and answers may differ from a token on
        where two tokens are nearly equally likely.
        The passes of guarded and lossless also replace the tokens' keys and values by exact ones.
    draft: the source of drafts. none: no drafts. ngram: if the latest tokens occurred before, the tokens that followed
        them, where a pass over them is likely to save time. pruned: the kept neurons. both: ngram if it finds
        something, else pruned. n-grams are always checked as in lossless. None: ngram in mode fast, else both.
    draft_tokens: number of tokens checked at once, 1 to 64. A number applies wherever n-grams match, even if drafts
        are rarely right, which is slower than no drafts. None drafts as many as are likely to save time.
    acceptance: for guarded: a token is acceptable if its probability in the full model is at least this fraction of
        the highest one, above 0 and at most 1.
    refresh: choose the neurons again as the full model reads on, once enough of them would differ.
    """

    mode: ModeName = "fast"
    draft: DraftName | None = None
    draft_tokens: int | None = None
    acceptance: float = 0.1
    refresh: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {self.mode!r}")
        if self.draft not in (None, *MODE_DRAFTS[self.mode]):
            allowed = ", ".join(MODE_DRAFTS[self.mode])
            raise ValueError(f"draft must be one of {allowed} in mode {self.mode}, but is {self.draft!r}")
        if self.draft_tokens is not None and not 1 <= self.draft_tokens <= MOST_DRAFT_TOKENS:
            raise ValueError(f"draft_tokens must be 1 to {MOST_DRAFT_TOKENS}, but is {self.draft_tokens}")
        if not 0 < self.acceptance <= 1:
            raise ValueError(f"acceptance must be above 0 and at most 1, but is {self.acceptance}")

    @property
    def source(self) -> DraftName:
        """The source of drafts."""
        return self.draft or MODE_DRAFTS[self.mode][-1]

    @property
    def full_alone(self) -> bool:
        """Whether the full model makes all tokens, and no kept neurons draft."""
        return self.mode != "fast" and self.source == "ngram"


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a prompt's own tokens are scored.

    top: report so many most probable tokens at each position, besides the token itself.
    prompt_tokens: with a sparsity, the full model reads so many tokens, and neurons are chosen on them. The kept
        neurons read all further tokens, as if they had been generated. None: all inputs but the last, the paper's
        simulated generation for classification (5.1). A scored text's last token is not an input to its own score, so
        this is two less than the text's length.
    start: tokens before this one need no score and may get none.
    """

    top: int = 0
    prompt_tokens: int | None = None
    start: int = 0

    def read_dense(self, length: int) -> int:
        """Number of tokens of a text of this length that the full model reads."""
        return max(1, length - 2) if self.prompt_tokens is None else self.prompt_tokens
