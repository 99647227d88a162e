"""Prompt: read once, scored if that is wanted, and continued as often as wanted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from griffin.decode.logprobs import Logprobs, logprobs
from griffin.decode.sampler import Drawn
from griffin.engine.chosen import Chosen
from griffin.engine.comparison import Comparison, divergence
from griffin.engine.runner import Runner
from griffin.engine.speculation import Block, Verified, Verifier
from griffin.errors import EngineBusy, InvalidRequest
from griffin.method.auto import Outlook
from griffin.method.statistic import Sums
from griffin.neurons import Selection
from griffin.request import Pruning, Sampling, Scoring, Verification

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    logprobs: if the sampling asks for them.
    finish_reason: set on the last token only. An end-of-sequence token is yielded too.
    selection: set on the first token that came from kept neurons only, and again once others were taken.
    verified: what verification has done by then, for all of this token's block; where it was asked for.
    """

    id: int
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    selection: Selection | None = None
    verified: Verified | None = None


@dataclass(eq=False)
class Claim:
    """An engine's word that nobody else uses it, until it is taken back."""

    holds: bool = True
    sequence: object = field(default_factory=object)


def never() -> bool:
    return False


class Prompt:
    """A prompt that an engine has read. It is good for the engine's ``read`` block, and one sequence at a time.

    scores: for each token of the prompt, the first excepted, which nothing predicts; None unless asked for.
    selection: the neurons that were chosen on it, once they are.
    cached_tokens: how many of its tokens an earlier prompt had in common, and need not be read again.
    outlook: what sparsity auto has come to, where it was asked for.
    """

    def __init__(
        self, runner: Runner, ids: Sequence[int], pruning: Pruning, end_ids: frozenset[int], claim: Claim
    ) -> None:
        self._runner, self._ids, self._pruning, self._end_ids = runner, list(ids), pruning, end_ids
        self._claim = claim
        self._logits_V: Tensor | None = None
        self._chosen: Chosen | None = None
        # The statistic of the prompt alone, once a sequence may go on with it.
        self._sums: Sums | None = None
        # Whether the decoder keeps the chosen neurons.
        self._ready = False
        # Whether the first token comes from kept neurons too: the prompt's end was scored by them.
        self._sparse_end = False
        self.selection: Selection | None = None
        self.scores: list[Logprobs | None] | None = None
        self.cached_tokens = 0
        self.outlook: Outlook | None = None

    @property
    def pruning(self) -> Pruning:
        """The choices that apply. After ``read``, sparsity auto is a number among them."""
        return self._pruning

    def read(self, scoring: Scoring | None, cancelled: Callable[[], bool]) -> None:
        """Run it through the full model, or, to score it sparsely, its beginning.

        Raises:
            Cancelled: between two chunks.
        """
        runner, ids, length = self._runner, self._ids, len(self._ids)
        sparse = scoring is not None and runner.prunes(self._pruning)
        dense = min(length, scoring.read_dense(length)) if scoring and sparse else length
        # Scores need logits, which are not kept; and so does the last token that is read here.
        start = length if scoring is None else min(scoring.start, dense)
        self.cached_tokens = runner.resume(ids, start - 1, dense)
        self.scores = None if scoring is None else [None] * (self.cached_tokens + 1)
        logits_from = length - 1 if scoring is None else min(max(0, scoring.start - 1), length - 1)
        for logits_CV in runner.read_dense(ids, self.cached_tokens, dense, logits_from, cancelled):
            self._take(logits_CV, scoring)
        if dense < length:
            self._sparse_end = True
            self._choose(dense)
            assert self._chosen is not None
            runner.load(self._chosen)
            self.selection = self._chosen.selection()
            for logits_CV in runner.read_sparse(ids, dense, length, logits_from, cancelled):
                self._take(logits_CV, scoring)
        if outlook := runner.outlook(self._pruning, length):
            self.outlook = outlook
            self._pruning = replace(self._pruning, sparsity=outlook.sparsity, auto=None)

    def _take(self, logits_CV: Tensor, scoring: Scoring | None) -> None:
        """One chunk has been read; these are the logits of its last tokens, of those that were wanted."""
        if len(logits_CV):
            self._logits_V = logits_CV[-1]
        if scoring is None or self.scores is None:
            return
        behind = self._runner.cache.length
        first = behind - len(logits_CV)
        self.scores += [None] * (first + 1 - len(self.scores))
        targets = torch.tensor(self._ids[first + 1 : behind + 1], device=logits_CV.device)
        if len(targets):
            self.scores += logprobs(logits_CV[: len(targets)], targets, scoring.top)

    def generate(
        self, sampling: Sampling, cancelled: Callable[[], bool] = never, verification: Verification | None = None
    ) -> Iterator[Token]:
        """Yield the tokens that follow. Sequences come one after the other, each anew from the prompt's end.

        ``cancelled`` is asked between tokens; once true, the iterator simply ends.

        Raises:
            EngineBusy: another sequence has been started meanwhile, or another prompt been read.
            InvalidRequest: a mode that needs the full model's reading of the prompt, whose end was scored sparsely.
        """
        sequence = self._claim.sequence = object()
        self._require(sequence)
        end_ids = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._end_ids)
        self._runner.cache.length = len(self._ids)
        if verification is not None and self._drafts(verification):
            yield from self._verified(sequence, sampling, cancelled, end_ids, verification)
        else:
            yield from self._unverified(sequence, sampling, cancelled, end_ids)

    def _drafts(self, verification: Verification) -> bool:
        """Whether there is anything to verify."""
        if verification.mode == "fast":
            return False
        if self._sparse_end:
            raise InvalidRequest(
                f"griffin.mode {verification.mode} goes on from what the full model has read, but this prompt's end "
                "was scored by kept neurons: score it by the full model, or choose mode fast",
                "griffin.mode",
            )
        return verification.draft != "pruned" or self._runner.prunes(self._pruning)

    def _unverified(
        self, sequence: object, sampling: Sampling, cancelled: Callable[[], bool], end_ids: frozenset[int]
    ) -> Iterator[Token]:
        pending, ahead = self._begin(sampling, end_ids), self._runner.decoder.ahead
        for count in range(1, sampling.max_tokens + 1):
            if cancelled():
                return
            last = count == sampling.max_tokens
            # A device works on the next token while the host looks at this one.
            following = self._advance() if ahead and not last else None
            drawn = pending()
            reason: FinishReason | None = "stop" if drawn.id in end_ids else "length" if last else None
            yield Token(drawn.id, drawn.logprobs, reason, self._report(count))
            # Once more, right after the token was handed out: nothing is computed for nobody.
            if reason or cancelled():
                return
            self._require(sequence)
            pending = following or self._advance()

    def _verified(
        self,
        sequence: object,
        sampling: Sampling,
        cancelled: Callable[[], bool],
        end_ids: frozenset[int],
        verification: Verification,
    ) -> Iterator[Token]:
        # The decoder's neurons are the verifier's from here on.
        self._ready = False
        block, verified, verifier, count = Block([self._begin(sampling, end_ids)()]), Verified(), None, 0
        while True:
            chosen = block.chosen
            for drawn in block.tokens:
                if cancelled():
                    return
                count += 1
                last = count == sampling.max_tokens
                reason: FinishReason | None = "stop" if drawn.id in end_ids else "length" if last else None
                yield Token(drawn.id, drawn.logprobs, reason, self._selection_of(chosen), verified)
                if reason or cancelled():
                    return
                self._require(sequence)
                chosen = None
            verifier = verifier or self._make_verifier(verification, block.tokens[-1].id, end_ids)
            block = verifier.block(sampling.max_tokens - count)
            verified = verifier.verified

    def _make_verifier(self, verification: Verification, first_id: int, end_ids: frozenset[int]) -> Verifier:
        runner = self._runner
        if verification.draft != "ngram":
            self._choose(len(self._ids))
        # Every sequence starts from the prompt's own.
        if self._sums is None:
            self._sums = runner.statistic.sums()
        else:
            runner.statistic.resume(self._sums)
        chosen = None if verification.draft == "ngram" else self._chosen
        return Verifier(runner, verification, self._pruning, chosen, [*self._ids, first_id], end_ids)

    def compare(self, ids: Sequence[int], cancelled: Callable[[], bool] = never) -> Comparison | None:
        """What the kept neurons and the full model make of tokens that were generated from this prompt.

        Both read them behind the prompt, one after the other, so it takes about as long as a prompt of twice as many
        tokens. The sequence they come from has ended by then; others may follow. None of fewer than two tokens, or
        where no neurons are removed.

        Raises:
            Cancelled: ``cancelled``, asked between chunks, was true.
            EngineBusy: another prompt has been read.
        """
        sequence = self._claim.sequence = object()
        self._require(sequence)
        self._choose(len(self._ids))
        if self._chosen is None or len(ids) < 2:
            return None
        runner, start, read = self._runner, len(self._ids), [*self._ids, *ids[:-1]]
        runner.load(self._chosen)
        runner.cache.length = start
        full_TD = runner.hidden(runner.model, read, start, len(read), cancelled)
        runner.cache.length = start
        pruned_TD = runner.hidden(runner.twin.model, read, start, len(read), cancelled)
        return divergence(runner.model, full_TD, pruned_TD, ids[1:])

    def _begin(self, sampling: Sampling, end_ids: frozenset[int]) -> Callable[[], Drawn]:
        assert self._logits_V is not None
        return self._runner.decoder.begin(self._logits_V, sampling, self._ids, end_ids)

    def _advance(self) -> Callable[[], Drawn]:
        if not self._ready:
            self._choose(len(self._ids))
            self._runner.keep(self._chosen)
            self._ready = True
        return self._runner.decoder.advance()

    def _choose(self, prompt_tokens: int) -> None:
        """Once, when they are needed first."""
        if self._chosen is None:
            self._chosen = self._runner.select(self._pruning, prompt_tokens)

    def _report(self, count: int) -> Selection | None:
        """What was chosen, on the first token that came from it."""
        return self._selection_of(self._chosen if count == (1 if self._sparse_end else 2) else None)

    def _selection_of(self, chosen: Chosen | None) -> Selection | None:
        if chosen is None:
            return None
        if chosen is not self._chosen:
            return chosen.selection()
        if self.selection is None:
            self.selection = chosen.selection()
        return self.selection

    def _require(self, sequence: object) -> None:
        if not self._claim.holds or self._claim.sequence is not sequence:
            raise EngineBusy("the engine has gone on to another sequence; read the prompt again")
