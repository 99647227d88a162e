"""Refresh: chooses neurons again as the full model reads on, and uses them if enough of them differ."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from griffin.engine.pending import PendingSelection
from griffin.engine.state import SequenceState
from griffin.method.statistic import Activations
from griffin.neurons import Chosen, Kept
from griffin.request import Pruning

# The full model reads so many tokens before neurons are chosen again.
REFRESH_TOKENS = 64
# New neurons are used if less than this fraction of them is the same.
SAME_ENOUGH = 0.9


class Refresh:
    """Watches one sequence. Only for neurons that follow the text, see ``Pruning.follows_text``."""

    def __init__(self, state: SequenceState, pruning: Pruning, width: int) -> None:
        """
        Args:
            width: F.
        """
        self._state, self._pruning, self._width = state, pruning, width
        self._unseen = 0

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """While open, the full model reads a block. Call the function with how many of its tokens stay."""
        with self._state.statistic.holding() as held:

            def count(tokens: int) -> None:
                held(tokens)
                self._unseen += tokens

            yield count

    def count(self, seen_L: Sequence[Activations], tokens: int) -> None:
        """Count tokens that the full model has read and that stay.

        Args:
            seen_L: their activations, for each layer.
        """
        self._state.statistic.count(seen_L)
        self._unseen += tokens

    def other(self, chosen: PendingSelection) -> PendingSelection | None:
        """Neurons to use instead; None if it is too early, or most would be the same."""
        if self._unseen < REFRESH_TOKENS:
            return None
        self._unseen = 0
        other = self._state.choose(self._pruning, self._state.length)
        if other is None or _alike(other.chosen, chosen.chosen, self._width):
            return None
        return other


def _alike(other: Chosen, before: Chosen, width: int) -> bool:
    """Whether the change is too small. Thresholds copy no weights, so new thresholds are always used."""
    if isinstance(other, Kept) and isinstance(before, Kept):
        return overlap(other.layers, before.layers, width) >= SAME_ENOUGH
    return False


def overlap(first: Sequence[Tensor], second: Sequence[Tensor], width: int) -> float:
    """The Jaccard similarity of two sets of neurons, over all layers: size of the intersection over size of the union.

    Two sets of more than half of the neurons always share many. For them it is the similarity of the neurons that they
    leave out, and 0 if they leave out none.

    Args:
        first, second: for each layer sorted indices, ``(k,)``.
        width: F.
    """
    pairs = zip(first, second, strict=True)
    shared = int(torch.stack([torch.isin(a_k, b_k, assume_unique=True).sum() for a_k, b_k in pairs]).sum())
    either = sum(map(len, first)) + sum(map(len, second)) - shared
    total = width * len(first)
    if 2 * shared > total:
        shared, either = total - either, total - shared
    return shared / max(1, either)
