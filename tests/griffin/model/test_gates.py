"""Gates by input: made once, made again for other gates, shared by copies of a model, and not written to files."""

import copy
import pickle

import torch

from griffin.model.gates import GatesByInput
from griffin.model.matrix.dense import Dense


def test_gates_are_made_once() -> None:
    """They are the transpose."""
    gates, held = [Dense(torch.rand(5, 3))], GatesByInput()
    (turned,) = held.matrices(gates)

    assert turned.dense().equal(gates[0].dense().t())
    assert held.matrices(gates)[0] is turned


def test_other_gates_are_turned_anew() -> None:
    """Other tensors, or tensors with new values, never get the earlier numbers."""
    first, second, held = torch.rand(5, 3), torch.rand(5, 3), GatesByInput()
    held.matrices([Dense(first)])

    assert held.matrices([Dense(second)])[0].dense().equal(second.t())
    second.zero_()
    assert not held.matrices([Dense(second)])[0].dense().any()


def test_a_model_with_gates_can_be_copied_and_written() -> None:
    """A copy shares the gates; a file has none."""
    module = torch.nn.Linear(2, 2)
    held = GatesByInput.of(module)
    held.matrices([Dense(torch.rand(5, 3))])

    assert GatesByInput.of(copy.deepcopy(module)) is held
    assert not GatesByInput.of(pickle.loads(pickle.dumps(module)))._matrices
