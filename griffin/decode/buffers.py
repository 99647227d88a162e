"""Where the decode twin puts the weights of kept neurons: buffers of one layer, by one of two policies.

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

    expand: ``(parts k, D)``; or, where these cannot be in one, a matrix ``(k, D)`` for each part.
    bias: ``(parts k,)``, or None where the expanding projections have none.
    contract: ``(k, D)``, one row for each neuron.
    """

    expand: Sequence[Matrix]
    bias: Tensor | None
    contract: Matrix

    @property
    def neurons(self) -> int:
        return self.contract.row_count


# Makes buffers for so many neurons.
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
        """Whether there are buffers, but too small ones, which ``release`` must give up before ``take``."""

    @abstractmethod
    def take(self, kept: int) -> Buffers:
        """Buffers for at least so many neurons.

        Raises:
            MemoryError, torch.OutOfMemoryError: there is no room for them.
        """

    def release(self) -> None:
        """Give the buffers up."""
        self.buffers = None


class FullRoom(Room):
    """Room for all neurons, made once: nothing is allocated from request to request.

    For a CPU: on Linux the pages that no request has needed yet take no memory.
    """

    def is_short(self, kept: int) -> bool:
        return False

    def take(self, kept: int) -> Buffers:
        if self.buffers is None:
            self.buffers = self._allocate(self._width)
        return self.buffers


class GrowingRoom(Room):
    """Room for the largest request so far.

    For memory that is taken at once, as a GPU's, and for models that are larger than the memory.
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
        on_host: the model's FF weights stay on the host, because the device has no room for all of them.
    """
    return FullRoom if device.type == "cpu" and not on_host else GrowingRoom
