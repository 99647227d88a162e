"""Method: one way to choose neurons, as a row of ``methods.METHODS``.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from griffin.errors import InvalidRequest
from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import FlockingStatistic
from griffin.model.families import FeedForward
from griffin.neurons import Kept
from griffin.request import MethodName, Pruning


class Method(ABC):
    """Chooses neurons of one model. What depends on no prompt is computed at its first use.

    name: as requests write it.
    needs_calibration: whether the model must have been calibrated.
    """

    name: ClassVar[MethodName]
    needs_calibration: ClassVar[bool] = False

    def __init__(self, blocks: Sequence[FeedForward], device: torch.device, calibration: Calibration | None) -> None:
        """
        Args:
            blocks: the model's FF blocks, whose weights never move.
            device: where statistics are, and where kept neurons are needed.
            calibration: on that device.
        """
        self._blocks, self._device = blocks, device

    @classmethod
    def allows(cls, calibration: Calibration | None) -> bool:
        """Whether a model with this calibration, or without one, can be pruned by this method."""
        return calibration is not None or not cls.needs_calibration

    @classmethod
    def require(cls, calibration: Calibration | None) -> None:
        """
        Raises:
            InvalidRequest: it does not allow this calibration.
        """
        if not cls.allows(calibration):
            raise InvalidRequest(
                f"griffin.method: '{cls.name}' needs this model to be calibrated once: "
                "python -m griffin calibrate --model MODEL",
                "griffin.method",
            )

    @classmethod
    @abstractmethod
    def latest_tokens(cls, pruning: Pruning) -> int:
        """How many of a prompt's last tokens' activations it needs, besides the sums over all tokens."""

    @classmethod
    @abstractmethod
    def settings(cls, pruning: Pruning) -> list[Any]:
        """What its choice depends on besides sparsity and text, as JSON values that differ from any other method's."""

    @abstractmethod
    def neurons(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Sequence[Tensor]:
        """The neurons that stay in each layer, sorted: int64 ``(k,)``. See ``choose``, which costs more."""

    @abstractmethod
    def choose(self, statistic: FlockingStatistic, pruning: Pruning, *, skips: bool) -> Kept:
        """The neurons that stay, when they act, and what replaces the others.

        Args:
            statistic: of the prompt.
            pruning: removes at least one neuron.
            skips: whether the step that will run does not read neurons that rest.
        """

    @abstractmethod
    def worth(self, statistic: FlockingStatistic, pruning: Pruning) -> Tensor:
        """What is lost with each neuron, for sparsity auto: fp32 ``(rows, L F / rows)``.

        A sparsity removes its fraction of each row, the lowest values first. The sum of what it removes is the loss.
        """
