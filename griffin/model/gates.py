"""A second copy of the gate matrices, with a row for each input, for steps that skip inputs."""

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
    """A model's gates by input, shared by all its trees.

    They take as much memory again as the gates: a third of the feed-forward weights.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._matrices: Sequence[Matrix] = ()
        # The matrices from which they were made.
        self._made_of: list[tuple[int, int, torch.device]] = []

    def __deepcopy__(self, memo: Any) -> "GatesByInput":
        # Copies of a model's tree share its weights, and this object too. If they do not, see ``matrices``.
        return self

    def __reduce__(self) -> tuple[type["GatesByInput"], tuple[()]]:
        # A model that is saved to a file makes them again after it is loaded.
        return GatesByInput, ()

    @staticmethod
    def of(model: nn.Module) -> "GatesByInput":
        """The gates of a model; call this before its tree is copied for the first time."""
        found = getattr(model, ATTRIBUTE, None)
        if found is None:
            found = GatesByInput()
            setattr(model, ATTRIBUTE, found)
        return found

    def matrices(self, gates: Sequence[Matrix]) -> Sequence[Matrix]:
        """For each layer ``(D, F)``. Made at the first call, and again if the gates have changed.

        Args:
            gates: the gate matrices, ``(F, D)`` each.

        Raises:
            MemoryError: the system refuses the memory. If it promises memory that it lacks, it ends the process.
        """
        made_of = [_state(plane) for gate in gates for plane in gate.planes]
        with self._lock:
            if made_of != self._made_of:
                room = Room()
                self._matrices, self._made_of = [gate.transposed(room) for gate in gates], made_of
            return self._matrices


def _state(plane: Tensor) -> tuple[int, int, torch.device]:
    """Differs if the tensor moved or was written to."""
    return plane.data_ptr(), 0 if plane.is_inference() else plane._version, plane.device
