"""Engine: token ids in, token ids out, one sequence at a time. It knows nothing of text.

The life of a sequence: the full model reads the prompt in chunks while the statistic adds up; the first
token is drawn from the full model; the neurons are selected; the decode twin does the rest. To score a given
text sparsely, the selection comes before its end, and the twin reads the rest.
"""

import gc
import hashlib
import reprlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.accounting import Accounting
from griffin.decode import KVCache, extend, step
from griffin.errors import Cancelled, ContextLengthExceeded, EngineBusy, InvalidRequest, OutOfMemory
from griffin.families import feed_forwards
from griffin.pruning import DecodeTwin, Pruning, share, store_by_neuron_
from griffin.sampling import Logprobs, Sampler, Sampling, logprobs
from griffin.selection import STRATEGIES, kept_count
from griffin.statistic import FlockingStatistic, magnitude

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The neurons chosen for one prompt.

    kept_per_layer: k; the same in every layer.
    seconds: from the finished prompt to decode-ready weights.
    expert_set: a name for exactly these neurons, equal for equal sets.
    prompt_tokens: how many tokens they were chosen on.
    """

    kept_per_layer: int
    seconds: float
    expert_set: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    logprobs: if the sampling asks for them.
    finish_reason: set on the last token only. An end-of-sequence token is yielded too.
    selection: set on the first token that came from kept neurons only.
    """

    id: int
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a prompt's own tokens are to be scored.

    top: report that many most probable tokens at each position, besides the token itself.
    prompt_tokens: with a sparsity, the full model reads that many tokens and neurons are chosen on them; all
        further tokens are read by the kept neurons, as if they had been generated. None: all but the last
        input, the paper's simulated generation for classification (5.1). The last token of a scored text is no
        input to its own score, so that is two less than the text has.
    start: tokens before this one need no score, and may be left without.
    """

    top: int = 0
    prompt_tokens: int | None = None
    start: int = 0

    def read_dense(self, length: int) -> int:
        return max(1, length - 2) if self.prompt_tokens is None else self.prompt_tokens


def _never() -> bool:
    return False


class Prompt:
    """A prompt that an engine has read: scored, if that was wanted, and continued as often as wanted.

    scores: for each token of the prompt, the first excepted, which nothing predicts; None unless asked for.

    It is good for the engine's ``read`` block that it came from, and for one sequence at a time.
    """

    def __init__(self, engine: "Engine", ids: list[int], pruning: Pruning) -> None:
        self._engine, self._ids, self._pruning = engine, ids, pruning
        self._decoder: PreTrainedModel | None = None
        self._logits_V: Tensor | None = None
        self._sequence = object()
        # What the first token comes from: the full model, unless the prompt's end was scored by kept neurons.
        self._first_from: Selection | None = None
        self.selection: Selection | None = None
        self.scores: list[Logprobs | None] | None = None

    def generate(self, sampling: Sampling, cancelled: Callable[[], bool] = _never) -> Iterator[Token]:
        """Yield the tokens that follow. Sequences come one after the other, each anew from the prompt's end.

        ``cancelled`` is asked between tokens; once true, the iterator simply ends.

        Raises:
            EngineBusy: another sequence has been started meanwhile, or another prompt been read.
        """
        sequence = self._sequence = object()
        engine, device = self._engine, self._engine.device
        end_ids = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else engine.eos_token_ids)
        self._require(sequence)
        engine._cache.cut(len(self._ids))
        logits_V = self._logits_V
        assert logits_V is not None
        sampler = Sampler(sampling, self._ids, end_ids, len(logits_V), device)
        selection = self._first_from
        for count in range(1, sampling.max_tokens + 1):
            if cancelled():
                return
            id = sampler.draw(logits_V)
            reason: FinishReason | None = (
                "stop" if id in end_ids else "length" if count == sampling.max_tokens else None
            )
            yield Token(id, _logprobs(logits_V, id, sampling), reason, selection)
            # Once more, right after the token was handed out: nothing is computed for nobody.
            if reason or cancelled():
                return
            self._require(sequence)
            decoder = self._select()
            selection = self.selection if count == 1 and self._first_from is None else None
            logits_V = step(decoder, torch.tensor([id], device=device), engine._cache)[-1]

    def _require(self, sequence: object) -> None:
        if self._engine._prompt is not self or self._sequence is not sequence:
            raise EngineBusy("the engine has gone on to another sequence; read the prompt again")

    def _select(self) -> PreTrainedModel:
        """The tree that decodes this prompt's sequences; chosen at the first need of it."""
        if self._decoder is None:
            self._decoder, self.selection = self._engine._select(self._pruning, len(self._ids))
        return self._decoder

    def _read(self, scoring: Scoring | None, cancelled: Callable[[], bool]) -> None:
        """Run the prompt through the full model, or, to score it sparsely, its beginning."""
        length, sparse = len(self._ids), scoring is not None and self._engine._prunes(self._pruning)
        dense = min(length, scoring.read_dense(length)) if scoring and sparse else length
        # Nothing is left for the kept neurons to read: they are chosen as for any prompt.
        sparse = sparse and dense < length
        ids_T = torch.tensor(self._ids, device=self._engine.device)
        if scoring:
            self.scores = [None]
        with self._engine._collecting(self._pruning):
            self._extend(self._engine._model, ids_T, 0, dense, scoring, cancelled)
        if sparse:
            self._decoder, self.selection = self._engine._select(self._pruning, dense)
            self._first_from = self.selection
            self._extend(self._decoder, ids_T, dense, length, scoring, cancelled)

    def _extend(
        self,
        model: PreTrainedModel,
        ids_T: Tensor,
        start: int,
        end: int,
        scoring: Scoring | None,
        cancelled: Callable[[], bool],
    ) -> None:
        """One part of the prompt, in chunks."""
        cache, size = self._engine._cache, self._engine._prefill_chunk
        for first in range(start, end, size):
            if cancelled():
                raise Cancelled("the prompt was given up")
            behind = min(first + size, end)
            chunk = ids_T[first:behind]
            if scoring is not None and behind >= scoring.start:
                logits_CV = step(model, chunk, cache, logits_for=len(chunk))
                targets = ids_T[first + 1 : behind + 1]
                assert self.scores is not None
                if len(targets):
                    self.scores += logprobs(logits_CV[: len(targets)], targets, scoring.top)
                self._logits_V = logits_CV[-1]
                continue
            if scoring is not None and self.scores is not None:
                self.scores += [None] * len(chunk)
            if behind < len(self._ids):
                extend(model, chunk, cache)
            else:
                self._logits_V = step(model, chunk, cache)[-1]


class Engine:
    """Generates from one model on one device, one sequence at a time.

    Several engines may be built on one model: they share its weights, and each has its own module trees,
    KV cache and buffers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        context_length: int | None = None,
        prefill_chunk: int = 512,
    ) -> None:
        """
        Args:
            model: a causal language model; its FF weights are laid out anew in place, their values unchanged.
            context_length: a limit below the model's own, in tokens.
            prefill_chunk: prompt tokens per forward pass, the bound on prefill's memory.

        Raises:
            UnsupportedModel: see ``families.feed_forwards``.
        """
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be 1 or more, but is {prefill_chunk}")
        model.eval().requires_grad_(False)
        self._origin = model
        self._prefill_chunk = prefill_chunk
        self._prompt: Prompt | None = None
        self._magnitude_LF: Tensor | None = None
        self._build()
        self.device = model.device
        self.accounting = Accounting.of(self._model)
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        self.context_length = _context_length(model, context_length)
        self.eos_token_ids = _eos_token_ids(model)

    def _build(self) -> None:
        # A tree of its own: hooks sit on modules, and engines must not see each other's.
        self._model = share(self._origin)
        self._blocks = feed_forwards(self._model)
        store_by_neuron_(self._blocks)
        self._twin = DecodeTwin(self._model)
        self._statistic = FlockingStatistic(self._blocks)
        self._cache = KVCache(len(self._blocks))

    def rebuild(self) -> None:
        """Start over after a failure, whatever state it left: all but the weights is made anew, and warmed up."""
        # An earlier attempt may have ended half-way, with some of them missing.
        for name in ("_model", "_blocks", "_twin", "_statistic", "_cache"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._prompt = None
        self._build()
        self.warm_up()

    def warm_up(self) -> None:
        """First calls choose kernels and touch buffers; no request should pay for that."""
        prompt = [0] * min(8, self.context_length - 2)
        for _ in self.generate(prompt, Sampling(max_tokens=2, ignore_eos=True), Pruning(0.5)):
            pass

    def check(
        self, prompt_ids: Sequence[int], sampling: Sampling | None = None, scoring: Scoring | None = None
    ) -> None:
        """Whether a prompt can be read and scored so, and continued so (``sampling`` None: not at all).

        Raises:
            InvalidRequest: an empty prompt, an id that the model does not have, or a prompt's end outside of it.
            ContextLengthExceeded: prompt and ``max_tokens`` together exceed the context.
        """
        if not prompt_ids:
            raise InvalidRequest("the prompt has no tokens; give at least one", "prompt")
        lowest, highest = min(prompt_ids), max(prompt_ids)
        if lowest < 0 or highest >= self.vocabulary_size:
            wrong = lowest if lowest < 0 else highest
            raise InvalidRequest(
                f"token id {reprlib.repr(wrong)} is out of range; this model has ids 0 to {self.vocabulary_size - 1}",
                "prompt",
            )
        if scoring and scoring.prompt_tokens is not None and not 1 <= scoring.prompt_tokens <= len(prompt_ids):
            raise InvalidRequest(
                f"griffin.prompt_tokens: {scoring.prompt_tokens} is not within the prompt of {len(prompt_ids)} tokens",
                "griffin.prompt_tokens",
            )
        biased = max(sampling.logit_bias, default=0) if sampling else 0
        if biased >= self.vocabulary_size:
            raise InvalidRequest(
                f"logit_bias: token id {reprlib.repr(biased)} is out of range; this model has ids 0 to "
                f"{self.vocabulary_size - 1}",
                "logit_bias",
            )
        stop = max(sampling.stop_token_ids, default=0) if sampling else 0
        if stop >= self.vocabulary_size:
            raise InvalidRequest(
                f"stop_token_ids: token id {stop} is out of range; this model has ids 0 to {self.vocabulary_size - 1}",
                "stop_token_ids",
            )
        max_tokens = sampling.max_tokens if sampling else 0
        room = self.context_length - len(prompt_ids)
        if room < min(1, max_tokens):
            raise ContextLengthExceeded(
                f"this model's context is {self.context_length} tokens and the prompt has {len(prompt_ids)}, "
                "which leaves no room for an answer; shorten the prompt",
                "prompt",
            )
        if max_tokens > room:
            raise ContextLengthExceeded(
                f"this model's context is {self.context_length} tokens: {len(prompt_ids)} of the prompt and "
                f"max_tokens={reprlib.repr(max_tokens)} do not fit; ask for at most {room}",
                "max_tokens",
            )

    @contextmanager
    def read(
        self,
        prompt_ids: Sequence[int],
        pruning: Pruning | None = None,
        scoring: Scoring | None = None,
        cancelled: Callable[[], bool] = _never,
    ) -> Iterator[Prompt]:
        """Read a prompt once, to generate any number of sequences from it. The engine is taken until the block ends.

        Raises:
            InvalidRequest: see ``check``.
            EngineBusy: another prompt's block has not ended.
            Cancelled: ``cancelled``, asked before each prompt chunk, was true.
            OutOfMemory: from here or from within the block.
        """
        pruning = pruning or Pruning()
        self.check(prompt_ids, None, scoring)
        prompt = Prompt(self, list(prompt_ids), pruning)
        with self._claimed(prompt):
            self._cache.cut(0)
            prompt._read(scoring, cancelled)
            yield prompt

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling | None = None,
        pruning: Pruning | None = None,
        cancelled: Callable[[], bool] = _never,
    ) -> Iterator[Token]:
        """Yield the tokens that follow a prompt.

        Closing the iterator ends the generation. ``cancelled`` is asked between prompt chunks and between
        tokens; once true, the iterator simply ends.

        Raises:
            InvalidRequest: at once, see ``check``.
            EngineBusy, OutOfMemory: from ``next``, see ``read``.
        """
        sampling = sampling or Sampling()
        self.check(prompt_ids, sampling)
        return self._generate(prompt_ids, sampling, pruning, cancelled)

    def _generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, pruning: Pruning | None, cancelled: Callable[[], bool]
    ) -> Iterator[Token]:
        with suppress(Cancelled), self.read(prompt_ids, pruning, cancelled=cancelled) as prompt:
            yield from prompt.generate(sampling, cancelled)

    def score(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int], pruning: Pruning) -> Tensor:
        """Log-probabilities of a given continuation, teacher-forced: fp32 ``(len(continuation_ids),)``.

        The prompt runs through the full model, which also predicts the first token of the continuation;
        the rest is predicted by the kept neurons, as in the paper's simulated generation (5.1, 5.3).
        """
        if not prompt_ids or not continuation_ids:
            raise InvalidRequest("both a prompt and a continuation are needed", "prompt")
        ids = [*prompt_ids, *continuation_ids]
        with self.read(ids, pruning, Scoring(0, len(prompt_ids), len(prompt_ids))) as prompt:
            assert prompt.scores is not None
            scores = [score.chosen for score in prompt.scores[len(prompt_ids) :] if score]
            return torch.tensor(scores, dtype=torch.float32)

    def _prunes(self, pruning: Pruning) -> bool:
        return kept_count(self.accounting.width, pruning.sparsity) < self.accounting.width

    def _collecting(self, pruning: Pruning) -> AbstractContextManager[None]:
        self._statistic.reset()
        flocking = pruning.sparsity > 0 and pruning.statistic == "flocking"
        return self._statistic.collecting() if flocking else nullcontext()

    def _select(self, pruning: Pruning, prompt_tokens: int) -> tuple[PreTrainedModel, Selection | None]:
        """The tree that decodes from here on, and what was chosen for it."""
        if not self._prunes(pruning):
            return self._model, None
        started = time.perf_counter()
        kept = kept_count(self.accounting.width, pruning.sparsity)
        statistic_LF = self._statistic.value() if pruning.statistic == "flocking" else self._magnitude()
        experts_Lk = STRATEGIES[pruning.selection](statistic_LF, kept, pruning.generator())
        self._twin.load(experts_Lk)
        expert_set = hashlib.sha256(experts_Lk.to("cpu", torch.int32).numpy().tobytes()).hexdigest()[:16]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._twin.model, Selection(kept, time.perf_counter() - started, expert_set, prompt_tokens)

    def _magnitude(self) -> Tensor:
        # Read once, at the first request that wants it: it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks)
        return self._magnitude_LF

    @contextmanager
    def _claimed(self, prompt: Prompt) -> Iterator[None]:
        if self._prompt is not None:
            raise EngineBusy("this engine is generating another sequence; finish or close that iterator first")
        self._prompt = prompt
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if _is_out_of_memory(error):
                raise OutOfMemory("there was not enough memory for this request") from error
            raise
        finally:
            # After a rebuild, another prompt may be there already.
            if self._prompt is prompt:
                self._prompt = None


def build_engines(
    model: PreTrainedModel, count: int, *, context_length: int | None = None, prefill_chunk: int = 512
) -> list[Engine]:
    """Engines that share one model, warmed up, for ``count`` threads to run one each.

    On a CPU torch's threads are divided among them: more threads than cores cost far more than they bring.
    """
    engines = [Engine(model, context_length=context_length, prefill_chunk=prefill_chunk) for _ in range(count)]
    if model.device.type == "cpu" and count > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    for engine in engines:
        engine.warm_up()
    return engines


def _context_length(model: PreTrainedModel, limit: int | None) -> int:
    own = int(model.config.max_position_embeddings)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this length all earlier keys would have to be rotated anew: chunks and a cache cannot do that.
        own = min(own, int(rope["original_max_position_embeddings"]))
    return min(own, limit or own)


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    if configured is None:
        configured = model.config.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset(configured if isinstance(configured, list) else [configured])


def _logprobs(logits_V: Tensor, id: int, sampling: Sampling) -> Logprobs | None:
    if sampling.logprobs is None:
        return None
    return logprobs(logits_V[None], torch.tensor([id], device=logits_V.device), sampling.logprobs)[0]


def _is_out_of_memory(error: Exception) -> bool:
    # Of the CPU's allocator there is no class.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
