"""Method: one way to choose what a request's tokens read, as a row of ``methods.METHODS``.

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
    """Chooses for one model. What depends on no prompt is computed at its first use.

    name: as requests write it.
    reads_in_place: whether tokens read the model's own weights, so that these must be on the device.
    usual_losses: for sparsity auto where a model was not measured; None if models differ too much.
    """

    name: ClassVar[MethodName]
    reads_in_place: ClassVar[bool] = False
    usual_losses: ClassVar[LossTable | None] = None

    def __init__(self, blocks: Sequence[FeedForward], device: torch.device) -> None:
        """
        Args:
            blocks: the model's FF blocks, whose weights never move.
            device: where statistics are, and where the choice is needed.
        """
        self._blocks, self._device = blocks, device

    @classmethod
    @abstractmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        """How many of a prompt's last tokens' activations it needs, besides the sums over all tokens."""

    @classmethod
    @abstractmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        """What its choice depends on besides sparsity and text, as JSON values that differ from any other method's."""

    @classmethod
    @abstractmethod
    def reads(cls, sparsity: float, accounting: Accounting) -> tuple[int, int]:
        """How many parameters and bytes of weights a token reads at a sparsity, as planned before any prompt."""

    @abstractmethod
    def choose(self, statistic: PromptStatistic, pruning: Pruning) -> Chosen:
        """What the tokens after a prompt read.

        Args:
            statistic: of the prompt.
            pruning: leaves something out.
        """

    @abstractmethod
    def removed(self, statistic: PromptStatistic, pruning: Pruning, sparsities: Sequence[float]) -> list[float]:
        """What each of these sparsities would lose on this prompt, for sparsity auto; between 0 and 1."""
