"""Prefill: reads prompts in chunks, as far as possible from what is kept of earlier prompts.

Shapes: C tokens of a chunk, T tokens, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.engine.prefixes import PrefixStore, SharedPrefix
from griffin.engine.state import SequenceState
from griffin.engine.trees import Trees
from griffin.errors import Cancelled
from griffin.model.forward import extend, logits


class Prefill:
    """Runs tokens through one of the trees, in chunks, into the sequence at hand."""

    def __init__(self, trees: Trees, state: SequenceState, prefixes: PrefixStore) -> None:
        """
        Args:
            prefixes: of the same chunk size.
        """
        self._trees, self._state, self._chunk = trees, state, prefixes.chunk
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
        with self._state.statistic.collecting():
            for first, after in self._chunks(start, end, cancelled):
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

    def _run(self, model: PreTrainedModel, ids: Sequence[int], first: int, after: int, logits_from: int) -> Tensor:
        ids_T = torch.tensor(ids[first:after], device=self._trees.device)
        wanted = after - max(first, logits_from)
        if wanted > 0:
            return logits(model, ids_T, self._state.cache, wanted)
        extend(model, ids_T, self._state.cache)
        return torch.empty(0, 0, device=self._trees.device)
