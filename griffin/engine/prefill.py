"""Prefill: reads prompts in chunks, and reuses what is kept of earlier prompts.

Shapes: C tokens of a chunk, T tokens, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.decoder import PASS_TOKENS, PassingStep
from griffin.engine.pass_limit import MANY, PassLimit, measured
from griffin.engine.prefixes import Known, PrefixStore, SharedPrefix
from griffin.engine.state import SequenceState
from griffin.engine.trees import Trees
from griffin.errors import Cancelled
from griffin.model.forward import extend, logits


class Prefill:
    """Runs tokens through one of the trees, in chunks, as part of the current sequence."""

    def __init__(self, trees: Trees, state: SequenceState, prefixes: PrefixStore, limit: PassLimit) -> None:
        """
        Args:
            prefixes: with the same chunk size.
            limit: longest chunk that the decoder's passes read.
        """
        self._trees, self._state, self._chunk, self._limit = trees, state, prefixes.chunk, limit
        self._prefix = SharedPrefix(prefixes, state)

    def resume(self, ids: Sequence[int], limit: int, dense: int) -> Known:
        """Reuse what is known of a prompt's beginning, at most its first ``limit`` tokens.

        Args:
            dense: number of tokens that the full model will read. The latest of them must be read again, because their
                activations are not kept.

        Returns:
            The number of tokens that need not be read.
        """
        return self._prefix.resume(ids, min(limit, dense - self._state.latest))

    def read_dense(
        self, ids: Sequence[int], start: int, end: int, logits_from: int, cancelled: Callable[[], bool]
    ) -> Iterator[Tensor]:
        """Run tokens of a prompt through the full model, and count them in the statistic.

        A chunk within the limit goes through passes. This depends only on where the chunk begins and ends, which is
        the same whatever was known of the prompt.

        Yields:
            After each chunk, or pass, the logits ``(C, V)`` of its tokens from ``logits_from`` on; C may be 0.

        Raises:
            Cancelled: between chunks, or passes.
        """
        for first, after in self._chunks(start, end, cancelled):
            if (step := self._state.decoder.passes) is not None and after - first <= self._limit.tokens:
                yield from self._in_passes(step, ids, first, after, logits_from, cancelled)
            else:
                with self._state.statistic.collecting():
                    yield self._run(self._trees.full, ids, first, after, logits_from)
            self._prefix.remember(after)

    def read_sparse(
        self, ids: Sequence[int], start: int, end: int, logits_from: int, cancelled: Callable[[], bool]
    ) -> Iterator[Tensor]:
        """As ``read_dense``, but through the neurons of ``SequenceState.read_with``, and not counted."""
        for first, after in self._chunks(start, end, cancelled):
            yield self._run(self._trees.twin.model, ids, first, after, logits_from)

    def hidden(self, model: PreTrainedModel, ids: Sequence[int], start: int, cancelled: Callable[[], bool]) -> Tensor:
        """The last hidden states ``(T, D)`` of the tokens from ``start`` on. They are not counted.

        Args:
            model: one of the trees.
            start: the cache holds the tokens before; what it holds after them is overwritten.

        Raises:
            Cancelled: between chunks.
        """
        self._state.rewind(start)
        cache, device = self._state.cache, self._trees.device
        chunks = self._chunks(start, len(ids), cancelled)
        return torch.cat([extend(model, torch.tensor(ids[a:b], device=device), cache) for a, b in chunks])

    def _chunks(self, start: int, end: int, cancelled: Callable[[], bool]) -> Iterator[tuple[int, int]]:
        first = start
        while first < end:
            _require_wanted(cancelled)
            # Each ends at a multiple of the chunk size, as in any prompt with the same beginning.
            after = min(first - first % self._chunk + self._chunk, end)
            yield first, after
            first = after

    def settle(self, context_length: int) -> None:
        """Settle the limit, unless it is: find out up to how many tokens passes are faster. Forgets the sequence."""
        if self._limit.settled:
            return
        step, state = self._state.decoder.passes, self._state
        if step is None or context_length < MANY:
            self._limit.settle(0)
            return

        def by_passes(tokens: int) -> None:
            state.reset()
            for _ in self._in_passes(step, [1] * tokens, 0, tokens, tokens - 1, lambda: False):
                pass

        def by_model(tokens: int) -> None:
            state.reset()
            with state.statistic.collecting():
                self._run(self._trees.full, [1] * tokens, 0, tokens, tokens - 1)

        self._limit.settle(measured(by_passes, by_model, self._trees.device))

    def _in_passes(
        self,
        step: PassingStep,
        ids: Sequence[int],
        start: int,
        end: int,
        logits_from: int,
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        for first, after in passes(start, end, cancelled):
            logits_CV, seen_L = step.observe(ids[first:after], max(0, after - max(first, logits_from)))
            self._state.statistic.count(seen_L)
            # The step's next call writes over them.
            yield logits_CV.clone()

    def _run(self, model: PreTrainedModel, ids: Sequence[int], first: int, after: int, logits_from: int) -> Tensor:
        ids_T = torch.tensor(ids[first:after], device=self._trees.device)
        wanted = after - max(first, logits_from)
        if wanted > 0:
            return logits(model, ids_T, self._state.cache, wanted)
        extend(model, ids_T, self._state.cache)
        return torch.empty(0, 0, device=self._trees.device)


def passes(start: int, end: int, cancelled: Callable[[], bool]) -> Iterator[tuple[int, int]]:
    """Where each pass over the tokens from ``start`` to ``end`` begins and ends.

    Raises:
        Cancelled: before a pass.
    """
    for first in range(start, end, PASS_TOKENS):
        _require_wanted(cancelled)
        yield first, min(first + PASS_TOKENS, end)


def _require_wanted(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the prompt was given up")
