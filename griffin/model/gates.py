"""Gate matrices a second time, with a row for each input: for steps that skip inputs."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from griffin.model.matrix.matrix import Matrix
from griffin.model.memory import Room

# The attribute of a model's trees that holds its gates.
ATTRIBUTE = "gates_by_input"


class GatesByInput:
    """The gates of one model by input, shared by all its trees.

    They take a third of the feed-forward weights' memory again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._matrices: Sequence[Matrix] = ()
        # What they were made of.
        self._made_of: list[tuple[int, int, torch.device]] = []

    def __deepcopy__(self, memo: Any) -> "GatesByInput":
        # Copies of a model's tree share its weights, and these with them. Should they not, see ``matrices``.
        return self

    def __reduce__(self) -> tuple[type["GatesByInput"], tuple[()]]:
        # A model that is written to a file makes them anew once it is read.
        return GatesByInput, ()

    @staticmethod
    def of(model: nn.Module) -> "GatesByInput":
        """A model's; before its tree is copied for the first time."""
        found = getattr(model, ATTRIBUTE, None)
        if found is None:
            found = GatesByInput()
            setattr(model, ATTRIBUTE, found)
        return found

    def matrices(self, gates: Sequence[Matrix]) -> Sequence[Matrix]:
        """For each layer ``(D, F)``; made at the first call, and anew if the gates are no more what they were.

        Args:
            gates: the gate matrices, ``(F, D)`` each.

        Raises:
            MemoryError: the system does not promise as much memory. One that has too little ends the process instead.
        """
        made_of = [_state(plane) for gate in gates for plane in gate.planes]
        with self._lock:
            if made_of != self._made_of:
                room = Room()
                self._matrices, self._made_of = [gate.transposed(room) for gate in gates], made_of
            return self._matrices


def _state(plane: Tensor) -> tuple[int, int, torch.device]:
    """Another one if it lies elsewhere, or was written to."""
    return plane.data_ptr(), 0 if plane.is_inference() else plane._version, plane.device
