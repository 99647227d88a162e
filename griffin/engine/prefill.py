"""Prefill: reads prompts in chunks, as far as possible from what is kept of earlier prompts.

Shapes: C tokens of a chunk, T tokens, D model width, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.decoder import PassingStep
from griffin.engine.prefixes import PrefixStore, SharedPrefix
from griffin.engine.state import SequenceState
from griffin.engine.trees import Trees
from griffin.errors import Cancelled
from griffin.model.forward import extend, logits

# So many tokens are read to find out how long it takes, each so often; the first time is always slower.
TRIED, TIMES = (16, 64), 2


@dataclass
class PassLimit:
    """Up to how many tokens a chunk of a prompt goes through the decoder's pass. One for all engines of a model.

    tokens: 0 until it was measured.
    measured: whether it was.
    """

    tokens: int = 0
    measured: bool = False

    def decide(self, token: float, few: float, many: float, most: int) -> None:
        """
        Args:
            token: seconds that a pass takes for each token.
            few, many: seconds that the model's own code takes for the two numbers of ``TRIED``.
            most: the limit is not higher.
        """
        self.measured = True
        each = max(0.0, (many - few) / (TRIED[1] - TRIED[0]))
        fixed = few - each * TRIED[0]
        self.tokens = most if token <= each else max(0, min(most, int(fixed / (token - each))))


class Prefill:
    """Runs tokens through one of the trees, in chunks, into the sequence at hand."""

    def __init__(self, trees: Trees, state: SequenceState, prefixes: PrefixStore, passes: PassLimit) -> None:
        """
        Args:
            prefixes: of the same chunk size.
            passes: up to how many tokens a chunk goes through the decoder's pass.
        """
        self._trees, self._state, self._chunk, self._passes = trees, state, prefixes.chunk, passes
        self._prefix = SharedPrefix(prefixes, state)

    def resume(self, ids: Sequence[int], limit: int, dense: int) -> int:
        """Take over what is known of a prompt's beginning, at most its first ``limit`` tokens.

        Args:
            dense: how many tokens the full model will read. The latest of them must be read here, because their
                activations are not kept.

        Returns:
            How many tokens need not be read.
        """
        return self._prefix.resume(ids, min(limit, dense - self._state.latest))

    def read_dense(
        self, ids: Sequence[int], start: int, end: int, logits_from: int, cancelled: Callable[[], bool]
    ) -> Iterator[Tensor]:
        """Run tokens of a prompt through the full model, and count them in the statistic.

        Yields:
            After each chunk, the logits ``(C, V)`` of its tokens from ``logits_from`` on; C may be 0.

        Raises:
            Cancelled: between chunks.
        """
        for first, after in self._chunks(start, end, cancelled):
            if self._state.decoder.passes is not None and after - first <= self._passes.tokens:
                yield self._pass(self._state.decoder.passes, ids[first:after], max(0, after - max(first, logits_from)))
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
            if cancelled():
                raise Cancelled("the prompt was given up")
            # Each ends at a multiple of the chunk size, as in any prompt with the same beginning.
            after = min(first - first % self._chunk + self._chunk, end)
            yield first, after
            first = after

    def _pass(self, step: PassingStep, ids: Sequence[int], wanted: int) -> Tensor:
        logits_CV, seen_L = step.observe(ids, wanted)
        self._state.statistic.count(seen_L)
        # The step's next call writes over them.
        return logits_CV.clone()

    def measure(self, context_length: int) -> None:
        """Find up to how many tokens a chunk is read faster by a pass. Once for all engines of a model."""
        step, device = self._state.decoder.passes, self._trees.device
        if step is None or self._passes.measured or context_length < TRIED[1]:
            return

        def seconds(read: Callable[[], object]) -> float:
            self._state.rewind(0)
            began = time.perf_counter()
            read()
            return time.perf_counter() - began

        def by_model(tokens: int) -> float:
            ids_T = torch.full((tokens,), 1, device=device)
            with self._state.statistic.collecting():
                return seconds(lambda: logits(self._trees.full, ids_T, self._state.cache))

        few, many = (min(by_model(tokens) for _ in range(TIMES)) for tokens in TRIED)
        a_pass = min(seconds(lambda: step.observe([1] * TRIED[0], 1)) for _ in range(TIMES))
        self._passes.decide(a_pass / TRIED[0], few, many, self._chunk)

    def _run(self, model: PreTrainedModel, ids: Sequence[int], first: int, after: int, logits_from: int) -> Tensor:
        ids_T = torch.tensor(ids[first:after], device=self._trees.device)
        wanted = after - max(first, logits_from)
        if wanted > 0:
            return logits(model, ids_T, self._state.cache, wanted)
        extend(model, ids_T, self._state.cache)
        return torch.empty(0, 0, device=self._trees.device)
