"""Engine: token ids in, token ids out, one sequence at a time. It knows nothing of text.

The life of a sequence: the full model reads the prompt in chunks while the statistic adds up. The first token is drawn
from the full model's logits. Then neurons are chosen, and the decoder makes all further tokens with them. To score a
given text sparsely, neurons are chosen before its end and read the rest, see ``reading``.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.steps import STEP_NAMES, StepName
from griffin.engine.assembly import Assembly, assemble
from griffin.engine.continuation import Token
from griffin.engine.limits import Limits, model_context_length
from griffin.engine.pass_limit import PassLimit
from griffin.engine.prefix_files import PrefixFiles
from griffin.engine.prefixes import PrefixStore
from griffin.engine.prompt import Claim, Prompt, never
from griffin.errors import (
    Cancelled,
    EngineBusy,
    InvalidRequest,
    LoadError,
    OutOfMemory,
    is_out_of_memory,
)
from griffin.method.auto import LossTable
from griffin.method.preparation import Preparation
from griffin.model.checkpoint.ends import configured_ends
from griffin.model.host import HostWeights
from griffin.request import MethodName, Pruning, Sampling, Scoring, Verification


class Engine:
    """Generates from one model on one device, one sequence at a time.

    Several engines may be built on one model. They share its weights; each has its own module trees, KV cache and
    buffers.

    accounting: parameters and bytes of the model.
    prefixes: stores the beginnings of recent prompts.
    device: where the model computes.
    vocabulary_size: all token ids are below it.
    context_length: in tokens.
    eos_token_ids: ids that end a sequence, unless its sampling says otherwise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        context_length: int | None = None,
        prefill_chunk: int = 256,
        prefixes: PrefixStore | None = None,
        limit: PassLimit | None = None,
        losses: Sequence[LossTable] = (),
        step: StepName = "auto",
        method: MethodName = "griffin",
    ) -> None:
        """
        Args:
            model: a causal language model. Its weights get a new layout in place; their values do not change.
            context_length: a limit below the model's own, in tokens.
            prefill_chunk: prompt tokens per forward pass, which limits the memory of the prompt phase.
            prefixes: stores the beginnings of prompts, with the same chunk size; None stores none.
            limit: decides which chunks the decoder's passes read; ``warm_up`` settles it if it is open. None: the
                model's own code reads all chunks.
            losses: the model's measured losses, by method, for sparsity auto; auto is refused for other methods.
            step: how a token is run, see ``decode.steps``; auto takes the fastest one.
            method: the method of most requests. ``warm_up`` prepares it; others are prepared at their first use.

        Raises:
            UnsupportedModel: see ``families.feed_forwards``.
            ValueError: the step cannot run here.
        """
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be 1 or more, but is {prefill_chunk}")
        if step not in STEP_NAMES:
            raise ValueError(f"step must be one of {', '.join(STEP_NAMES)}, but is {step!r}")
        if prefixes is not None and prefixes.chunk != prefill_chunk:
            raise ValueError(f"prefill_chunk is {prefill_chunk}, but prefixes are kept in chunks of {prefixes.chunk}")
        model.eval().requires_grad_(False)
        self._claim: Claim | None = None
        self.prefixes = PrefixStore(0, prefill_chunk) if prefixes is None else prefixes
        self._limit = PassLimit() if limit is None else limit
        self.device = model.device
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        self.context_length = model_context_length(model, context_length)
        self.eos_token_ids = configured_ends(model)
        # During a rebuild, requests are checked against these.
        self._method: MethodName = method
        self._preparation = Preparation(losses, HostWeights.of(model) is not None)
        self._assemble = partial(
            assemble,
            model,
            self.prefixes,
            self._limit,
            self._preparation,
            context_length=self.context_length,
            step=step,
        )
        self._made: Assembly | None = self._assemble()
        self.accounting = self._made.trees.accounting

    @property
    def _assembly(self) -> Assembly:
        """
        Raises:
            EngineBusy: it is being rebuilt, or a rebuild has failed.
        """
        if self._made is None:
            raise EngineBusy("this engine is being rebuilt; wait until that has ended")
        return self._made

    @property
    def step(self) -> str:
        """The step that runs a token, see ``decode.steps``."""
        return self._assembly.state.decoder.name

    @property
    def pass_tokens(self) -> int:
        """Most tokens of a prompt chunk that is read in passes, see ``PassLimit``; 0 if the step has no passes."""
        return self._limit.tokens if self._assembly.state.decoder.passes else 0

    def rebuild(self) -> None:
        """Start over after a failure: make everything but the weights again, and warm it up.

        During a rebuild ``check``, ``require``, ``accounting`` and the sizes work as always, in any thread.
        """
        # Free the old memory first, including that of a rebuild that failed half-way.
        self._made = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._claim = None
        self.prefixes.clear()
        self._made = self._assemble()
        self.warm_up()

    def warm_up(self) -> None:
        """Choose kernels and touch buffers, so that no request waits for that, and check that the step is right.

        This also settles the limit of passes, unless another engine has done so.
        """
        prompt = [id % self.vocabulary_size for id in range(min(8, self.context_length - 2))]
        self._assembly.verify(prompt)
        for _ in self.generate(prompt, Sampling(max_tokens=2, ignore_eos=True), Pruning(0.5, method=self._method)):
            pass
        self._assembly.prefill.settle(self.context_length)

    def check(
        self, prompt_ids: Sequence[int], sampling: Sampling | None = None, scoring: Scoring | None = None
    ) -> None:
        """Check that a prompt can be read, scored and continued in this way; ``sampling`` None: not continued.

        Raises:
            InvalidRequest: the prompt is empty, an id is not in the vocabulary, or scoring starts beyond the prompt.
            ContextLengthExceeded: prompt and ``max_tokens`` together exceed the context.
        """
        Limits(self.vocabulary_size, self.context_length).check(prompt_ids, sampling, scoring)

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned in this way: it is streamed, or was not measured.
        """
        self._preparation.require(pruning)

    @contextmanager
    def read(
        self,
        prompt_ids: Sequence[int],
        pruning: Pruning | None = None,
        scoring: Scoring | None = None,
        cancelled: Callable[[], bool] = never,
        others: Sequence[Pruning] = (),
    ) -> Iterator[Prompt]:
        """Read a prompt once, then generate any number of sequences from it. The engine is busy until the block ends.

        Args:
            others: further ways in which its sequences may be pruned, see ``Prompt.prune``.

        Raises:
            InvalidRequest: see ``check``.
            EngineBusy: another prompt's block has not ended.
            Cancelled: ``cancelled``, asked before each prompt chunk, returned True.
            OutOfMemory: raised here or inside the block.
        """
        pruning = pruning or Pruning()
        self.check(prompt_ids, None, scoring)
        for each in (pruning, *others):
            self.require(each)
        with self._claimed() as claim:
            assembly = self._assembly
            assembly.begin(pruning, *others)
            prompt = Prompt(assembly, prompt_ids, pruning, self.eos_token_ids, claim)
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

        Closing the iterator ends the generation. ``cancelled`` is asked between prompt chunks and between tokens; once
        it returns True, the iterator ends.

        Raises:
            InvalidRequest: raised at once, see ``check``.
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

        The full model reads the prompt and predicts the continuation's first token. The kept neurons predict the rest,
        as in the paper's simulated generation (5.1, 5.3).
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
            # After a rebuild there may already be another claim.
            if self._claim is claim:
                self._claim = None


def build_engines(
    model: PreTrainedModel,
    count: int,
    *,
    context_length: int | None = None,
    prefill_chunk: int = 256,
    prefix_bytes: int = 0,
    prefix_files: PrefixFiles | None = None,
    limit: PassLimit | None = None,
    losses: Sequence[LossTable] = (),
    method: MethodName = "griffin",
    threads: int | None = None,
) -> list[Engine]:
    """Engines that share one model and one store of prefixes, warmed up, each for a thread of its own.

    On a CPU torch's threads are divided among them, because more threads than cores cost far more than they gain.

    Args:
        prefix_bytes: memory for the store.
        prefix_files: keeps prefixes after the process ends.
        limit: see ``Engine``; all engines that share it use what one measures.
        threads: torch's threads for all engines together; None: as many as torch has.

    Raises:
        LoadError: the weights leave too little memory for so many engines.
    """
    if model.device.type == "cpu" and (count > 1 or threads):
        torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // count))
    prefixes, limit = PrefixStore(prefix_bytes, prefill_chunk, prefix_files), limit or PassLimit()
    engines: list[Engine] = []
    try:
        for _ in range(count):
            engine = Engine(
                model,
                context_length=context_length,
                prefill_chunk=prefill_chunk,
                prefixes=prefixes,
                limit=limit,
                losses=losses,
                method=method,
            )
            engines.append(engine)
            engine.warm_up()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LoadError(
            f"the weights fit on {model.device}, but not all that workers={count} need (on CUDA each has the KV cache "
            "of a whole context); choose a shorter context (max-model-len) or fewer workers"
        ) from error
    return engines
