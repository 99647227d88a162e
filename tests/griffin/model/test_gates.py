"""Gates by input: made once, anew when the gates are other ones, and no hindrance to a copy or a file of a model."""

import copy
import pickle

import torch

from griffin.model.gates import GatesByInput
from griffin.model.matrix.dense import Dense


def test_gates_are_made_once() -> None:
    """And are the transpose."""
    gates, held = [Dense(torch.rand(5, 3))], GatesByInput()
    (turned,) = held.matrices(gates)

    assert turned.dense().equal(gates[0].dense().t())
    assert held.matrices(gates)[0] is turned


def test_other_gates_are_turned_anew() -> None:
    """Other tensors, and the same ones that were written to: never the numbers of before."""
    first, second, held = torch.rand(5, 3), torch.rand(5, 3), GatesByInput()
    held.matrices([Dense(first)])

    assert held.matrices([Dense(second)])[0].dense().equal(second.t())
    second.zero_()
    assert not held.matrices([Dense(second)])[0].dense().any()


def test_a_model_with_gates_can_be_copied_and_written() -> None:
    """A copy shares them; a file has none."""
    module = torch.nn.Linear(2, 2)
    held = GatesByInput.of(module)
    held.matrices([Dense(torch.rand(5, 3))])

    assert GatesByInput.of(copy.deepcopy(module)) is held
    assert not GatesByInput.of(pickle.loads(pickle.dumps(module)))._matrices
