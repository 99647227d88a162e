"""Method: the interface for a way to choose what a request's tokens read. ``methods.METHODS`` lists all methods.

Shapes: L layers, F feed-forward neurons.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from griffin.method.auto import LossTable
from griffin.method.statistic import PromptStatistic
from griffin.model.accounting import Accounting
from griffin.model.families import FeedForward
from griffin.neurons import Chosen
from griffin.request import MethodName, Pruning


class Method(ABC):
    """Chooses for one model. Values that depend on no prompt are computed at their first use.

    name: the name that requests use.
    reads_in_place: tokens read the model's own weights, so these must be on the device.
    usual_losses: for sparsity auto on models that were not measured; None if models differ too much.
    """

    name: ClassVar[MethodName]
    reads_in_place: ClassVar[bool] = False
    usual_losses: ClassVar[LossTable | None] = None

    def __init__(self, blocks: Sequence[FeedForward], device: torch.device) -> None:
        """
        Args:
            blocks: the model's FF blocks, whose weights never move.
            device: where statistics are, and where the choice is used.
        """
        self._blocks, self._device = blocks, device

    @classmethod
    @abstractmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        """Number of last tokens of a prompt whose activations are needed, besides the sums over all tokens."""

    @classmethod
    @abstractmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        """Everything besides sparsity and text that the choice depends on, as JSON values unlike any other method's."""

    @classmethod
    @abstractmethod
    def reads(cls, sparsity: float, accounting: Accounting) -> tuple[int, int]:
        """Planned parameters and bytes of weights that a token reads at a sparsity, before any prompt is known."""

    @abstractmethod
    def choose(self, statistic: PromptStatistic, pruning: Pruning) -> Chosen:
        """Choose what the tokens after a prompt read.

        Args:
            statistic: the prompt's statistic.
            pruning: must leave something out.
        """

    @abstractmethod
    def removed(self, statistic: PromptStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """The loss (0 to 1) of each of these sparsities on this prompt, for sparsity auto."""
