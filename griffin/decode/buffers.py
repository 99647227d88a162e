"""Buffers in which the decode twin gathers the weights of kept neurons of one layer, with two policies.

Shapes: D model width, k kept neurons; parts is 2 where gated, 1 otherwise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin.model.matrix.matrix import Matrix


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """Room for some neurons of one layer.

    expand: ``(parts k, D)``; or a matrix ``(k, D)`` for each part, if their format does not allow one matrix.
    bias: ``(parts k,)``; None if the expanding projections have none.
    contract: ``(k, D)``, one row for each neuron.
    """

    expand: Sequence[Matrix]
    bias: Tensor | None
    contract: Matrix

    @property
    def neurons(self) -> int:
        return self.contract.row_count


# Makes buffers for a number of neurons.
Allocate = Callable[[int], Buffers]


class Room(ABC):
    """The buffers of one layer. They are made at the first use, because not every step needs them."""

    def __init__(self, width: int, allocate: Allocate) -> None:
        """
        Args:
            width: F, the most neurons that can be kept.
        """
        self._width, self._allocate = width, allocate
        self.buffers: Buffers | None = None

    @abstractmethod
    def is_short(self, kept: int) -> bool:
        """Whether the existing buffers are too small; ``release`` must then free them before ``take``."""

    @abstractmethod
    def take(self, kept: int) -> Buffers:
        """Buffers for at least so many neurons.

        Raises:
            MemoryError, torch.OutOfMemoryError: there is not enough memory.
        """

    def release(self) -> None:
        """Free the buffers."""
        self.buffers = None


class FullRoom(Room):
    """Room for all neurons, made once, so that requests allocate nothing.

    For a CPU: on Linux, pages that no request has used take no memory.
    """

    def is_short(self, kept: int) -> bool:
        return False

    def take(self, kept: int) -> Buffers:
        if self.buffers is None:
            self.buffers = self._allocate(self._width)
        return self.buffers


class GrowingRoom(Room):
    """Room for the largest request so far.

    For memory that is taken at once, such as a GPU's, and for models larger than the memory.
    """

    def is_short(self, kept: int) -> bool:
        return self.buffers is not None and self.buffers.neurons < kept

    def take(self, kept: int) -> Buffers:
        if self.is_short(kept):
            self.release()
        if self.buffers is None:
            self.buffers = self._allocate(kept)
        return self.buffers


def room_for(device: torch.device, *, on_host: bool) -> type[Room]:
    """The policy for kept weights on a device.

    Args:
        on_host: the model's FF weights stay on the host, because they do not fit on the device.
    """
    return FullRoom if device.type == "cpu" and not on_host else GrowingRoom
