"""Chooser: decides what the tokens after a prompt read, from a request's choices and the prompt's statistic."""

from collections.abc import Mapping, Sequence

import torch

from griffin.method.auto import LossTable, Outlook
from griffin.method.methods import METHODS
from griffin.method.statistic import PromptStatistic
from griffin.model.families import FeedForward
from griffin.neurons import Chosen
from griffin.request import Pruning


class Chooser:
    """Chooses for one model by any method. It handles what all methods share: reuse and sparsity auto."""

    def __init__(
        self, blocks: Sequence[FeedForward], device: torch.device, tables: Mapping[str, LossTable] | None = None
    ) -> None:
        """
        Args:
            blocks: the model's FF blocks, whose weights never move.
            device: where statistics are, and where the choice is used.
            tables: measured losses for sparsity auto, by method.
        """
        self._device, self._width = device, blocks[0].width
        self._tables = tables or {}
        self._methods = {name: row(blocks, device) for name, row in METHODS.items()}

    def latest_tokens(self, pruning: Pruning) -> int:
        """Number of last tokens of a prompt whose activations are needed, besides the sums over all tokens."""
        if pruning.reuse is not None or not pruning.prunes(self._width):
            return 0
        return METHODS[pruning.method].latest_tokens(pruning)

    @torch.inference_mode()
    def outlook(self, statistic: PromptStatistic, pruning: Pruning, prompt_tokens: int) -> Outlook:
        """The sparsity that auto finds for this prompt; ``pruning`` asks for auto."""
        assert pruning.auto is not None
        table = self._tables[pruning.method]
        return table.outlook(pruning.auto, prompt_tokens, self.removed(statistic, pruning, table.sparsities))

    @torch.inference_mode()
    def removed(self, statistic: PromptStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """The loss of each of these sparsities on this prompt, see ``Method.removed``."""
        return self._methods[pruning.method].removed(statistic, pruning, sparsities)

    @torch.inference_mode()
    def choose(self, statistic: PromptStatistic, pruning: Pruning) -> Chosen:
        """What tokens read. ``pruning`` must leave something out."""
        if pruning.reuse is not None:
            return pruning.reuse.chosen.to(self._device)
        return self._methods[pruning.method].choose(statistic, pruning)
