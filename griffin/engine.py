"""Engine: token ids in, token ids out, one sequence at a time. It knows nothing of text.

The life of a sequence: the full model reads the prompt in chunks while the statistic adds up; the first
token is drawn from the full model; the neurons are selected; the decode twin does the rest.
"""

import hashlib
import reprlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from griffin.accounting import Accounting
from griffin.decode import KVCache, extend, step
from griffin.errors import ContextLengthExceeded, EngineBusy, InvalidRequest
from griffin.families import feed_forwards
from griffin.pruning import DecodeTwin, Pruning, share, store_by_neuron_
from griffin.sampling import Sampling, logprob, sample
from griffin.selection import STRATEGIES, kept_count
from griffin.statistic import FlockingStatistic, magnitude

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The neurons chosen for one sequence.

    kept_per_layer: k; the same in every layer.
    seconds: from the finished prompt to decode-ready weights.
    expert_set: a name for exactly these neurons, equal for equal sets.
    """

    kept_per_layer: int
    seconds: float
    expert_set: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    logprob: under the distribution it was drawn from, before temperature and filters.
    finish_reason: set on the last token only. An end-of-sequence token is yielded too.
    selection: set on the first token that came from kept neurons only.
    """

    id: int
    logprob: float
    finish_reason: FinishReason | None = None
    selection: Selection | None = None


def _never() -> bool:
    return False


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
        # A tree of its own: hooks sit on modules, and engines must not see each other's.
        self._model = share(model)
        self._blocks = feed_forwards(self._model)
        store_by_neuron_(self._blocks)
        self._twin = DecodeTwin(self._model)
        self._statistic = FlockingStatistic(self._blocks)
        self._magnitude_LF: Tensor | None = None
        self._cache = KVCache(len(self._blocks))
        self._prefill_chunk = prefill_chunk
        self._busy = False
        self.device = model.device
        self.accounting = Accounting.of(self._model)
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        self.context_length = _context_length(model, context_length)
        self.eos_token_ids = _eos_token_ids(model)

    def check(self, prompt_ids: Sequence[int], max_tokens: int) -> None:
        """Whether a sequence can be generated at all.

        Raises:
            InvalidRequest: an empty prompt, or an id that the model does not have.
            ContextLengthExceeded: prompt and ``max_tokens`` together exceed the context.
        """
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty; give at least one token", "prompt")
        lowest, highest = min(prompt_ids), max(prompt_ids)
        if lowest < 0 or highest >= self.vocabulary_size:
            wrong = lowest if lowest < 0 else highest
            raise InvalidRequest(
                f"token id {reprlib.repr(wrong)} is out of range; this model has ids 0 to {self.vocabulary_size - 1}",
                "prompt",
            )
        room = self.context_length - len(prompt_ids)
        if room < 1:
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
            EngineBusy: from the first ``next``, while another generation of this engine is unfinished.
        """
        sampling, pruning = sampling or Sampling(), pruning or Pruning()
        self.check(prompt_ids, sampling.max_tokens)
        return self._generate(list(prompt_ids), sampling, pruning, cancelled)

    def score(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int], pruning: Pruning) -> Tensor:
        """Log-probabilities of a given continuation, teacher-forced: fp32 ``(len(continuation_ids),)``.

        The prompt runs through the full model, which also predicts the first token of the continuation;
        the rest is predicted by the kept neurons, as in the paper's simulated generation (5.1, 5.3).
        """
        self.check([*prompt_ids, *continuation_ids], 1)
        if not prompt_ids or not continuation_ids:
            raise InvalidRequest("both a prompt and a continuation are needed", "prompt")
        with self._claimed():
            ids = torch.tensor([*prompt_ids, *continuation_ids], device=self.device)
            self._cache.start()
            logits = [self._prefill(ids[: len(prompt_ids)], pruning, _never)]
            decoder, _ = self._select(pruning)
            for chunk in torch.split(ids[len(prompt_ids) : -1], self._prefill_chunk):
                if len(chunk):
                    logits.append(step(decoder, chunk, self._cache, logits_for=len(chunk)))
            scores = [part.float().log_softmax(dim=-1) for part in logits if part is not None]
            return torch.cat(scores).gather(1, ids[len(prompt_ids) :, None])[:, 0]

    def _generate(
        self, prompt_ids: list[int], sampling: Sampling, pruning: Pruning, cancelled: Callable[[], bool]
    ) -> Iterator[Token]:
        with self._claimed():
            generator = sampling.generator(self.device)
            self._cache.start()
            logits = self._prefill(torch.tensor(prompt_ids, device=self.device), pruning, cancelled)
            if logits is None:
                return
            decoder, selection = self._model, None
            for count in range(1, sampling.max_tokens + 1):
                token = self._draw(logits[-1], sampling, generator, count, selection)
                yield token
                if token.finish_reason or cancelled():
                    return
                selection = None
                if count == 1:
                    decoder, selection = self._select(pruning)
                logits = step(decoder, torch.tensor([token.id], device=self.device), self._cache)

    def _prefill(self, ids_T: Tensor, pruning: Pruning, cancelled: Callable[[], bool]) -> Tensor | None:
        """Fill the cache and the statistic; the last position's logits ``(1, vocabulary)``, None if cancelled."""
        self._statistic.reset()
        flocking = pruning.sparsity > 0 and pruning.statistic == "flocking"
        *chunks, last = torch.split(ids_T, self._prefill_chunk)
        with self._statistic.collecting() if flocking else nullcontext():
            for chunk in chunks:
                if cancelled():
                    return None
                extend(self._model, chunk, self._cache)
            return None if cancelled() else step(self._model, last, self._cache)

    def _select(self, pruning: Pruning) -> tuple[PreTrainedModel, Selection | None]:
        """The tree that decodes from here on, and what was chosen for it."""
        kept = kept_count(self.accounting.width, pruning.sparsity)
        if kept == self.accounting.width:
            return self._model, None
        started = time.perf_counter()
        statistic_LF = self._statistic.value() if pruning.statistic == "flocking" else self._magnitude()
        experts_Lk = STRATEGIES[pruning.selection](statistic_LF, kept, pruning.generator())
        self._twin.load(experts_Lk)
        expert_set = hashlib.sha256(experts_Lk.to("cpu", torch.int32).numpy().tobytes()).hexdigest()[:16]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._twin.model, Selection(kept, time.perf_counter() - started, expert_set)

    def _magnitude(self) -> Tensor:
        # Read once, at the first request that wants it: it reads half of all weights.
        if self._magnitude_LF is None:
            self._magnitude_LF = magnitude(self._blocks)
        return self._magnitude_LF

    def _draw(
        self, logits_V: Tensor, sampling: Sampling, generator: Generator, count: int, selection: Selection | None
    ) -> Token:
        id = sample(logits_V, sampling, generator)
        ends = id in sampling.stop_token_ids or (id in self.eos_token_ids and not sampling.ignore_eos)
        reason: FinishReason | None = "stop" if ends else "length" if count == sampling.max_tokens else None
        return Token(id, logprob(logits_V, id), reason, selection)

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        if self._busy:
            raise EngineBusy("this engine is generating another sequence; finish or close that iterator first")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


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
        # First calls choose kernels and touch buffers; no request should pay for that.
        prompt = [0] * min(8, engine.context_length - 2)
        for _ in engine.generate(prompt, Sampling(max_tokens=2, ignore_eos=True), Pruning(0.5)):
            pass
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
