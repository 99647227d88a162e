"""Teacher: GRIFFIN on a given text, as if it had been generated (the paper's simulated generation, 5.1 and 5.3).

The prompt runs through the full FF blocks and counts in the statistic. The tokens after it read only the neurons that
were chosen on it. Many tokens run through the model at once, with the same result as one step for each token.

Activations are masked, see ``masks``, while the decode path skips neurons. So the two implementations check each other.

Shapes: L layers, F feed-forward neurons, C tokens of a chunk, B rows of a batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.experiments.common.masks import BlockMask
from griffin.method.chooser import Chooser
from griffin.method.methods import METHODS
from griffin.method.preparation import Preparation
from griffin.method.statistic import PromptStatistic, Sums
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.forward import extend, head, logits, share
from griffin.model.host import HostWeights
from griffin.neurons import Chosen
from griffin.request import METHOD_NAMES, Pruning
from griffin.thresholds import LayerThresholds, Shares, shares_read


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text, to come back to.

    length: the number of tokens before it.
    sums: the statistic of the tokens that ran through the full blocks.
    """

    length: int
    sums: Sums


class Teacher:
    """Reads one text at a time. It shares the weights of the model it was given."""

    def __init__(self, model: PreTrainedModel, chunk: int = 256) -> None:
        """
        Args:
            chunk: the number of tokens in one forward pass, which bounds the memory.
        """
        # A second tree over the same weights, for the hooks.
        self._model = share(model.eval())
        self._blocks = feed_forwards(self._model)
        self._cache = KVCache(len(self._blocks))
        self._statistic = PromptStatistic(self._blocks)
        self._chunk = chunk
        self._chooser = Chooser(self._blocks, model.device)
        self._preparation = Preparation(streamed=HostWeights.of(model) is not None)
        self._began: tuple[list[int], Mark] | None = None
        # Each layer's thresholds, by which the tokens of the last ``follow`` picked the neurons that they read.
        self._thresholds: list[LayerThresholds] = []
        # The method is not known yet, so the statistic keeps as many latest tokens as any method needs.
        allowed = [METHODS[name] for name in METHOD_NAMES if self._preparation.allows(name)]
        self._latest = max(row.latest_tokens(Pruning()) for row in allowed)

    @property
    def width(self) -> int:
        """F."""
        return self._blocks[0].width

    @torch.inference_mode()
    def begin(self) -> None:
        """Forget the text and its statistic."""
        self._began = None
        self._cache.length = 0
        self._statistic.reset(self._latest)

    def begin_with(self, ids: Sequence[int]) -> None:
        """Start a text with these tokens. If the current text starts with the same ones, go back to their end."""
        if self._began is not None and self._began[0] == list(ids):
            self.back_to(self._began[1])
            return
        self.begin()
        for _ in self.read(ids):
            pass
        self._began = list(ids), self.mark()

    def read(self, ids: Sequence[int], wanted: int = 0) -> Iterator[Tensor]:
        """Run more tokens through the full model, and count them in the statistic.

        Yields:
            The logits of the last ``wanted`` tokens, ``(C, V)`` for each chunk that has some. Do not keep them all.
        """
        with self._statistic.collecting():
            yield from self._run(ids, wanted)

    def follow(self, ids: Sequence[int], chosen: Chosen | None, wanted: int = 0) -> Iterator[Tensor]:
        """As ``read``, but tokens read only the chosen neurons (None: all) and do not count in the statistic."""
        with self._masked(chosen) as masks:
            rows = [mask.rows[0] for mask in masks]
            self._thresholds = [row for row in rows if isinstance(row, LayerThresholds)]
            yield from self._run(ids, wanted)

    def shares(self) -> Shares | None:
        """The mean share of the FF weights that the tokens of the last ``follow`` read; None if it is fixed."""
        return shares_read(self._thresholds) if self._thresholds else None

    @torch.inference_mode()
    def branch(self, id: int, sets: Sequence[Chosen | None]) -> Tensor:
        """Run one more token with each of these choices, as one batch. The text does not change.

        Returns:
            The logits after the token, ``(len(sets), V)``.
        """
        cache = DynamicCache()
        if length := self._cache.length:
            for number, (keys, values) in enumerate(self._cache.copy(0, length)):
                spread = (len(sets), *keys.shape)
                cache.update(keys.expand(spread), values.expand(spread), number)
        ids_B1 = torch.full((len(sets), 1), id, device=self._model.device)
        with self._masked(*sets):
            output = self._model.base_model(input_ids=ids_B1, past_key_values=cache, use_cache=True)
        return head(self._model, output.last_hidden_state[:, -1])

    def mark(self) -> Mark:
        """The current place in the text."""
        return Mark(self._cache.length, self._statistic.sums())

    def back_to(self, mark: Mark) -> None:
        """Go on from a mark. A return to an earlier mark makes later marks invalid, so return to later marks first."""
        self._cache.length = mark.length
        self._statistic.resume(mark.sums)

    def statistic(self) -> Tensor:
        """s of the tokens read so far (equation 1): fp32 ``(L, F)``."""
        return self._statistic.value()

    def choose(self, pruning: Pruning) -> Chosen | None:
        """The neurons that further tokens read with this pruning, after the tokens read so far; None is all.

        Raises:
            InvalidRequest: this model cannot be pruned like this.
        """
        if not pruning.prunes(self.width):
            return None
        self._preparation.require(pruning)
        return self._chooser.choose(self._statistic, pruning)

    def removed(self, pruning: Pruning) -> float:
        """The loss of this pruning, estimated from the tokens read so far, see ``Chooser.removed``."""
        self._preparation.require(pruning)
        return self._chooser.removed(self._statistic, pruning, [pruning.sparsity])[0]

    def _run(self, ids: Sequence[int], wanted: int) -> Iterator[Tensor]:
        ids_T = torch.tensor(ids, dtype=torch.long, device=self._model.device)
        first_wanted = len(ids) - wanted
        for first in range(0, len(ids), self._chunk):
            part = ids_T[first : first + self._chunk]
            here = first + len(part) - max(first, first_wanted)
            if here > 0:
                yield logits(self._model, part, self._cache, here)
            else:
                extend(self._model, part, self._cache)

    @contextmanager
    def _masked(self, *sets: Chosen | None) -> Iterator[list[BlockMask]]:
        """While open, each row of a batch reads its chosen neurons (None: all). Gives the masks of all layers."""
        prunes = any(chosen is not None for chosen in sets)
        masks = [BlockMask(block, number, sets) for number, block in enumerate(self._blocks)] if prunes else []
        handles = [handle for mask in masks for handle in mask.hooks()]
        try:
            yield masks
        finally:
            for handle in handles:
                handle.remove()
