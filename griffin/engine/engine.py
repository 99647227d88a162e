"""Engine: token ids in, token ids out, one sequence at a time. It knows nothing of text.

The life of a sequence: the full model reads the prompt in chunks while the statistic adds up; the first
token is drawn from the full model; the neurons are selected; the decode twin does the rest. To score a given
text sparsely, the selection comes before its end, and the twin reads the rest.
"""

import gc
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.steps import STEPS, StepName
from griffin.engine.prefixes import PrefixStore
from griffin.engine.prompt import Claim, Prompt, Token, never
from griffin.engine.runner import Runner
from griffin.errors import (
    Cancelled,
    ContextLengthExceeded,
    EngineBusy,
    InvalidRequest,
    LoadError,
    OutOfMemory,
    is_out_of_memory,
)
from griffin.method.auto import LossTable
from griffin.method.plus.calibration import Calibration
from griffin.method.preparation import Preparation
from griffin.model.checkpoint.ends import configured_ends
from griffin.request import METHOD_NAMES, MethodName, Pruning, Sampling, Scoring, Verification


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
        prefill_chunk: int = 256,
        prefixes: PrefixStore | None = None,
        calibration: Calibration | None = None,
        losses: Sequence[LossTable] = (),
        step: StepName = "auto",
    ) -> None:
        """
        Args:
            model: a causal language model; its weights are laid out anew in place, their values unchanged.
            context_length: a limit below the model's own, in tokens.
            prefill_chunk: prompt tokens per forward pass, the bound on prefill's memory.
            prefixes: where the beginnings of prompts are kept, of the same chunk; None keeps none.
            calibration: of this model, for method griffin+; None refuses that.
            losses: of this model, by method, for sparsity auto; likewise.
            step: how a token is run, see ``decode``; auto takes the fastest.

        Raises:
            UnsupportedModel: see ``families.feed_forwards``.
            ValueError: a step that cannot run here.
        """
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be 1 or more, but is {prefill_chunk}")
        if step not in STEPS:
            raise ValueError(f"step must be one of {', '.join(STEPS)}, but is {step!r}")
        if prefixes is not None and prefixes.chunk != prefill_chunk:
            raise ValueError(f"prefill_chunk is {prefill_chunk}, but prefixes are kept in chunks of {prefixes.chunk}")
        model.eval().requires_grad_(False)
        self._claim: Claim | None = None
        self.prefixes = PrefixStore(0, prefill_chunk) if prefixes is None else prefixes
        self.device = model.device
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        self.context_length = model_context_length(model, context_length)
        self.eos_token_ids = configured_ends(model)
        self._make_runner = partial(
            Runner,
            model,
            context_length=self.context_length,
            prefill_chunk=prefill_chunk,
            prefixes=self.prefixes,
            calibration=calibration,
            losses=losses,
            step=step,
        )
        self._made: Runner | None = self._make_runner()
        # None of these needs the runner again: requests are checked while it is being made anew.
        self.accounting = self._runner.accounting
        self._preparation = Preparation(calibration, losses)

    @property
    def _runner(self) -> Runner:
        """
        Raises:
            EngineBusy: it is being made anew, or that has failed.
        """
        if self._made is None:
            raise EngineBusy("this engine is being rebuilt; wait until that has ended")
        return self._made

    @property
    def step(self) -> str:
        """Which step runs a token, see ``decode``."""
        return self._runner.decoder.name

    def rebuild(self) -> None:
        """Start over after a failure, whatever state it left: all but the weights is made anew, and warmed up.

        Meanwhile ``check``, ``require``, ``accounting`` and the sizes answer as ever, in any thread.
        """
        # First the memory of the old one, or of an attempt that ended half-way.
        self._made = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._claim = None
        self.prefixes.clear()
        self._made = self._make_runner()
        self.warm_up()

    def warm_up(self) -> None:
        """First calls choose kernels and touch buffers; no request should pay for that. Nor be answered wrongly."""
        prompt = [id % self.vocabulary_size for id in range(min(8, self.context_length - 2))]
        self._runner.verify(prompt)
        methods: tuple[MethodName, ...] = METHOD_NAMES if self._runner.chooser.is_calibrated else ("griffin",)
        for method in methods:
            for _ in self.generate(prompt, Sampling(max_tokens=2, ignore_eos=True), Pruning(0.5, method=method)):
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

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned so: it was not calibrated, or not measured.
        """
        self._preparation.require(pruning)

    @contextmanager
    def read(
        self,
        prompt_ids: Sequence[int],
        pruning: Pruning | None = None,
        scoring: Scoring | None = None,
        cancelled: Callable[[], bool] = never,
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
        self.require(pruning)
        with self._claimed() as claim:
            self._runner.reset(pruning)
            prompt = Prompt(self._runner, prompt_ids, pruning, self.eos_token_ids, claim)
            prompt.read(scoring, cancelled)
            yield prompt

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling | None = None,
        pruning: Pruning | None = None,
        cancelled: Callable[[], bool] = never,
        verification: Verification | None = None,
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
        return self._generate(prompt_ids, sampling, pruning, cancelled, verification)

    def _generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        pruning: Pruning | None,
        cancelled: Callable[[], bool],
        verification: Verification | None,
    ) -> Iterator[Token]:
        with suppress(Cancelled), self.read(prompt_ids, pruning, cancelled=cancelled) as prompt:
            yield from prompt.generate(sampling, cancelled, verification)

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

    @contextmanager
    def _claimed(self) -> Iterator[Claim]:
        if self._claim is not None:
            raise EngineBusy("this engine is generating another sequence; finish or close that iterator first")
        claim = self._claim = Claim()
        try:
            yield claim
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory("there was not enough memory for this request") from error
            raise
        finally:
            claim.holds = False
            # After a rebuild, another may be there already.
            if self._claim is claim:
                self._claim = None


def build_engines(
    model: PreTrainedModel,
    count: int,
    *,
    context_length: int | None = None,
    prefill_chunk: int = 256,
    prefix_bytes: int = 0,
    calibration: Calibration | None = None,
    losses: Sequence[LossTable] = (),
) -> list[Engine]:
    """Engines that share one model and one store of prefixes, warmed up, for ``count`` threads to run one each.

    On a CPU torch's threads are divided among them: more threads than cores cost far more than they bring.
    """
    if model.device.type == "cpu" and count > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    prefixes = PrefixStore(prefix_bytes, prefill_chunk)
    # Once for all of them.
    calibration = calibration and calibration.to(model.device)
    engines: list[Engine] = []
    try:
        for _ in range(count):
            engine = Engine(
                model,
                context_length=context_length,
                prefill_chunk=prefill_chunk,
                prefixes=prefixes,
                calibration=calibration,
                losses=losses,
            )
            engines.append(engine)
            engine.warm_up()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LoadError(
            f"the weights fit on {model.device}, but not what workers={count} need beside them (on CUDA the KV cache "
            "of a whole context each); choose a shorter context (max-model-len) or fewer workers"
        ) from error
    return engines


def model_context_length(model: PreTrainedModel, limit: int | None = None) -> int:
    """Tokens that a model can attend to, or fewer by a limit.

    Model cards describe YaRN as a factor beside an unchanged ``max_position_embeddings``: the context is then the
    original length times the factor (as in vLLM). Linear scaling is written both ways, so the configured length holds
    unless a limit asks for more, up to the factor.
    """
    config = model.config
    own = most = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), float(rope.get("factor") or 1.0)
    if kind == "longrope":
        # Beyond this length all earlier keys would have to be rotated anew: chunks and a cache cannot do that.
        own = most = min(own, int(rope["original_max_position_embeddings"]))
    elif kind == "yarn":
        own = most = max(own, int(float(rope.get("original_max_position_embeddings") or own) * factor))
    elif kind == "linear":
        most = max(own, int(own * factor))
    return own if limit is None else min(limit, most)
