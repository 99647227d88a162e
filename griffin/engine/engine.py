"""Engine: token ids in, token ids out, one sequence at a time. It knows nothing of text.

The life of a sequence: the full model reads the prompt in chunks while the statistic adds up. The first token is drawn
from the full model's logits. Then neurons are chosen, and the decoder makes all further tokens with those. To score a
given text sparsely, neurons are chosen before its end, and read the rest, see ``reading``.
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
    prefixes: the store of recent prompts' beginnings.
    device: where the model computes.
    vocabulary_size: token ids are below it.
    context_length: in tokens.
    eos_token_ids: end a sequence, unless its sampling says otherwise.
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
            model: a causal language model; its weights are laid out anew in place, their values unchanged.
            context_length: a limit below the model's own, in tokens.
            prefill_chunk: prompt tokens per forward pass, the bound on prefill's memory.
            prefixes: where the beginnings of prompts are kept, of the same chunk; None keeps none.
            limit: which chunks the decoder's passes read; ``warm_up`` settles it, unless it is. None reads all by the
                model's own code.
            losses: of this model, by method, for sparsity auto; a method without a table is refused there.
            step: how a token is run, see ``decode.steps``; auto takes the fastest.
            method: that most requests will use. ``warm_up`` prepares it; another one is prepared when it is first used.

        Raises:
            UnsupportedModel: see ``families.feed_forwards``.
            ValueError: a step that cannot run here.
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
        # Requests are checked against these while the rest is being made anew.
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
            EngineBusy: it is being made anew, or that has failed.
        """
        if self._made is None:
            raise EngineBusy("this engine is being rebuilt; wait until that has ended")
        return self._made

    @property
    def step(self) -> str:
        """Which step runs a token, see ``decode.steps``."""
        return self._assembly.state.decoder.name

    @property
    def pass_tokens(self) -> int:
        """Up to how many tokens a chunk of a prompt is read in passes, see ``PassLimit``; 0 if no step has passes."""
        return self._limit.tokens if self._assembly.state.decoder.passes else 0

    def rebuild(self) -> None:
        """Start over after a failure: make everything but the weights anew, and warm it up.

        Meanwhile ``check``, ``require``, ``accounting`` and the sizes work as always, in any thread.
        """
        # Free the old memory first, also that of an attempt that ended half-way.
        self._made = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._claim = None
        self.prefixes.clear()
        self._made = self._assemble()
        self.warm_up()

    def warm_up(self) -> None:
        """Choose kernels and touch buffers, so that no request pays for that; and check that the step is right.

        It settles the limit of passes too, unless another engine has.
        """
        prompt = [id % self.vocabulary_size for id in range(min(8, self.context_length - 2))]
        self._assembly.verify(prompt)
        for _ in self.generate(prompt, Sampling(max_tokens=2, ignore_eos=True), Pruning(0.5, method=self._method)):
            pass
        self._assembly.prefill.settle(self.context_length)

    def check(
        self, prompt_ids: Sequence[int], sampling: Sampling | None = None, scoring: Scoring | None = None
    ) -> None:
        """Check that a prompt can be read and scored so, and continued so; ``sampling`` None means not continued.

        Raises:
            InvalidRequest: an empty prompt, an id that the model does not have, or scoring from beyond the prompt.
            ContextLengthExceeded: prompt and ``max_tokens`` together exceed the context.
        """
        Limits(self.vocabulary_size, self.context_length).check(prompt_ids, sampling, scoring)

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned so, because it is streamed or was not measured.
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
        """Read a prompt once, to generate any number of sequences from it. The engine is busy until the block ends.

        Args:
            others: ways in which its sequences may be pruned too, see ``Prompt.prune``.

        Raises:
            InvalidRequest: see ``check``.
            EngineBusy: another prompt's block has not ended.
            Cancelled: ``cancelled``, asked before each prompt chunk, was true.
            OutOfMemory: from here or from within the block.
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

        The full model reads the prompt and predicts the first token of the continuation. The kept neurons predict the
        rest, as in the paper's simulated generation (5.1, 5.3).
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
            # After a rebuild, another claim may be there already.
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

    On a CPU torch's threads are divided among them: more threads than cores cost far more than they bring.

    Args:
        prefix_bytes: memory for the store.
        prefix_files: where it keeps prefixes beyond the process.
        limit: see ``Engine``; what is measured counts for all that share it.
        threads: torch's, for all of them together; None: as many as it has now.

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
            f"the weights fit on {model.device}, but not what workers={count} need beside them (on CUDA the KV cache "
            "of a whole context each); choose a shorter context (max-model-len) or fewer workers"
        ) from error
    return engines
