"""Prompt: read once, scored if requested, and continued any number of times."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from griffin.decode.logprobs import Logprobs
from griffin.engine.assembly import Assembly
from griffin.engine.comparison import AT_ONCE, Comparison, divergence
from griffin.engine.continuation import Continuation, Token
from griffin.engine.ngrams import NGrams, PromptNGrams
from griffin.engine.prompt_neurons import PromptNeurons
from griffin.engine.reading import Reading
from griffin.engine.scores import Scores
from griffin.engine.speculation import Verifier
from griffin.errors import EngineBusy, InvalidRequest
from griffin.method.auto import Outlook
from griffin.method.statistic import Sums
from griffin.neurons import Selection
from griffin.request import Pruning, Sampling, Scoring, Verification


@dataclass(eq=False)
class Claim:
    """The right to use an engine alone.

    holds: False once it is taken back.
    sequence: the sequence that was started last.
    """

    holds: bool = True
    sequence: object = field(default_factory=object)

    def begin(self) -> object:
        """Start a sequence, which ends every other."""
        self.sequence = object()
        return self.sequence

    def require(self, sequence: object) -> None:
        """
        Raises:
            EngineBusy: the sequence is not the latest one, or the claim was taken back.
        """
        if not self.holds or self.sequence is not sequence:
            raise EngineBusy("the engine has gone on to another sequence; read the prompt again")


def never() -> bool:
    return False


class Prompt:
    """A prompt that an engine has read. It can be used within the engine's ``read`` block, for one sequence at a time.

    scores: one for each token of the prompt; None for the first token, which has no prediction. None unless requested.
    cached_tokens: number of its tokens that were reused from an earlier prompt.
    cached_in_files: how many of those came from files.
    outlook: what sparsity auto decided, if it was requested.
    """

    def __init__(
        self, assembly: Assembly, ids: Sequence[int], pruning: Pruning, end_ids: frozenset[int], claim: Claim
    ) -> None:
        self._trees, self._state, self._prefill = assembly.trees, assembly.state, assembly.prefill
        self._ids, self._end_ids, self._claim = list(ids), end_ids, claim
        self._neurons = PromptNeurons(self._state, pruning, len(ids))
        self._logits_V: Tensor | None = None
        # The statistic of the prompt alone; set once a sequence may have added to it.
        self._sums: Sums | None = None
        # The prompt's n-grams, once a sequence has used them.
        self._ngrams: PromptNGrams | None = None
        # The first token that kept neurons make. It is the very first token if they have scored the prompt's end.
        self._first_sparse = 2
        self.scores: list[Logprobs | None] | None = None
        self.cached_tokens = self.cached_in_files = 0
        self.outlook: Outlook | None = None

    @property
    def pruning(self) -> Pruning:
        """The choices that apply. After ``read``, sparsity auto has become a number."""
        return self._neurons.pruning

    @property
    def selection(self) -> Selection | None:
        """The neurons chosen for it, once they were reported."""
        return self._neurons.selection

    def read(self, scoring: Scoring | None, cancelled: Callable[[], bool]) -> None:
        """Run the prompt through the full model; if it is scored sparsely, only its beginning.

        Raises:
            Cancelled: between two chunks.
        """
        ids, length, dense = self._ids, len(self._ids), self._dense_tokens(scoring)
        # The last token that the full model reads must be read here, to get its logits. So must all scored tokens.
        start = length if scoring is None else min(scoring.start, dense)
        logits_from = length - 1 if scoring is None else min(max(0, scoring.start - 1), length - 1)
        self.cached_tokens, self.cached_in_files = self._prefill.resume(ids, start - 1, dense)
        scores = None if scoring is None else Scores(ids, scoring, self.cached_tokens)
        for logits_CV in self._prefill.read_dense(ids, self.cached_tokens, dense, logits_from, cancelled):
            self._take(logits_CV, scores)
        if dense < length:
            chosen = self._neurons.choose(dense)
            assert chosen is not None
            self._first_sparse = 1
            for logits_CV in self._reading(cancelled).logits(ids, dense, logits_from):
                self._take(logits_CV, scores)
            self._neurons.report(chosen)
            # What a sequence reads is counted from its first token on.
            self._neurons.release()
        self.scores = None if scores is None else scores.found
        self.outlook = self._state.outlook(self._neurons.pruning)
        if self.outlook:
            self._neurons.pruning = replace(self._neurons.pruning, sparsity=self.outlook.sparsity, auto=None)

    def _dense_tokens(self, scoring: Scoring | None) -> int:
        """Number of its tokens that the full model reads."""
        length, pruning = len(self._ids), self._neurons.pruning
        # Auto finds its sparsity after the whole prompt.
        if scoring is None or pruning.auto is not None or not self._state.prunes(pruning):
            return length
        return min(length, scoring.read_dense(length))

    def _take(self, logits_CV: Tensor, scores: Scores | None) -> None:
        """Take the needed logits of a chunk that was read: those of its last tokens."""
        if len(logits_CV):
            # The next logits may overwrite these.
            self._logits_V = logits_CV[-1].clone()
        if scores is not None:
            scores.add(logits_CV, self._state.length)

    def prune(self, pruning: Pruning) -> None:
        """Prune the following sequences in another way, without reading the prompt again.

        Args:
            pruning: has a known sparsity, and is one of the prunings for which the prompt was read.

        Raises:
            ValueError: it needs more of the prompt than was kept, or the prompt's end was scored sparsely.
        """
        if self._first_sparse == 1 or pruning.auto is not None or not self._state.allows(pruning):
            raise ValueError("the prompt was not read for this pruning; name it when the prompt is read")
        self._neurons = PromptNeurons(self._state, pruning, len(self._ids))

    def generate(
        self, sampling: Sampling, cancelled: Callable[[], bool] = never, verification: Verification | None = None
    ) -> Iterator[Token]:
        """Yield the tokens that follow. Several sequences come one after the other, each from the prompt's end.

        ``cancelled`` is asked between tokens; once it returns True, the iterator ends.

        Raises:
            EngineBusy: another sequence was started, or another prompt was read.
            InvalidRequest: the mode needs the full model's reading of the prompt, but its end was scored sparsely.
        """
        require = partial(self._claim.require, self._claim.begin())
        require()
        assert self._logits_V is not None
        end_ids = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._end_ids)
        self._state.rewind(len(self._ids))
        following = Continuation(self._state.decoder, self._neurons, sampling, end_ids, cancelled, require)
        if verification is not None and self._drafts(verification, sampling):
            make_verifier = partial(self._make_verifier, verification, end_ids)
            yield from following.verified(self._logits_V, self._ids, make_verifier)
        else:
            yield from following.unverified(self._logits_V, self._ids, reported=self._first_sparse)

    def _drafts(self, verification: Verification, sampling: Sampling) -> bool:
        """Whether there are drafts to verify, or tokens that a grammar forces and a pass can read."""
        if verification.mode == "fast":
            passes = self._state.decoder.passes is not None and self._first_sparse > 1
            return passes and (verification.source == "ngram" or sampling.grammar is not None)
        if self._first_sparse == 1:
            raise InvalidRequest(
                f"griffin.mode {verification.mode} continues from what the full model has read, but this prompt's end "
                "was scored by kept neurons: score it by the full model, or choose mode fast",
                "griffin.mode",
            )
        return verification.source != "pruned" or self._state.prunes(self._neurons.pruning)

    def _make_verifier(self, verification: Verification, end_ids: frozenset[int], first_id: int) -> Verifier:
        chosen = None if verification.full_alone else self._neurons.choose()
        if verification.mode == "fast":
            self._neurons.decode()
        else:
            # From here on the verifier decides which neurons the decoder uses.
            self._neurons.release()
        # Every sequence starts from the statistic of the prompt alone.
        if self._sums is not None:
            self._state.statistic.resume(self._sums)
        elif verification.mode != "fast":
            self._sums = self._state.statistic.sums()
        ngrams = self._ngrams_with(first_id) if verification.source in ("ngram", "both") else None
        pruning = self._neurons.pruning
        return Verifier(self._trees, self._state, verification, pruning, chosen, first_id, ngrams, end_ids)

    def _ngrams_with(self, first_id: int) -> NGrams:
        if self._ngrams is None:
            self._ngrams = PromptNGrams(self._ids)
        ngrams = NGrams(self._ngrams)
        ngrams.extend(first_id)
        return ngrams

    def compare(self, ids: Sequence[int], cancelled: Callable[[], bool] = never) -> Comparison | None:
        """Compare the kept neurons with the full model on tokens that were generated from this prompt.

        Both models read them after the prompt, one after the other, which takes about as long as a prompt of twice as
        many tokens. The sequence with these tokens has ended by then; others may follow.

        Returns:
            None for fewer than two tokens, or if no neurons are removed.

        Raises:
            Cancelled: ``cancelled``, asked between chunks and passes, returned True.
            EngineBusy: another prompt was read.
        """
        self._claim.require(self._claim.begin())
        if self._neurons.choose() is None or len(ids) < 2:
            return None
        full, start, read = self._trees.full, len(self._ids), [*self._ids, *ids[:-1]]
        full_TD = self._prefill.hidden(full, read, start, cancelled)
        return divergence(full, full_TD, self._reading(cancelled).pieces(read, start, AT_ONCE), ids[1:])

    def _reading(self, cancelled: Callable[[], bool]) -> Reading:
        return Reading(self._trees, self._state, self._prefill, self._neurons, cancelled)
