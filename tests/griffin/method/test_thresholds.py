"""Thresholds: the three stages by hand, copies and names, and the counts of what is read."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from griffin.engine.pending import PendingSelection, Timer
from griffin.thresholds import LayerThresholds, Shares, Thresholds, shares_read
from tests.griffin.method.thresholds import values

CPU = torch.device("cpu")
TENSORS = [field.name for field in fields(Thresholds)][1:]


def worked() -> Thresholds:
    """Thresholds of one layer with two inputs and three neurons."""
    return Thresholds(
        planned=Shares(0.5, 0.6, 0.4),
        means_LD=torch.tensor([[1.0, 2.0]]),
        input_limits_LD=torch.tensor([[0.5, 0.5]]),
        offsets_LF=torch.tensor([[10.0, 20.0, 30.0]]),
        gate_limits_LF=torch.tensor([[1.0, 1.0, 1.0]]),
        resting_LF=torch.tensor([[0.0, 5.0, 5.0]]),
        output_limits_LF=torch.tensor([[2.0, 2.0, 2.0]]),
    )


def plain(by: Thresholds) -> Thresholds:
    return replace(by, gate_limits_LF=None)


def test_inputs_by_hand() -> None:
    """An input exactly at its limit is not read."""
    layer = worked().layer(0, CPU)
    found = layer.inputs(torch.tensor([[1.5, 1.0], [1.0, 2.0], [0.0, 2.6]]))

    torch.testing.assert_close(found, torch.tensor([[0.0, -1.0], [0.0, 0.0], [-1.0, 0.6]]))
    assert layer.reads.tolist() == [3, 0, 0, 3]


def test_gates_by_hand() -> None:
    """Offsets are added."""
    found = worked().layer(0, CPU).gate(torch.tensor([[1.0, -1.0, 0.0]]))

    assert found.tolist() == [[11.0, 19.0, 30.0]]


def test_outputs_by_hand() -> None:
    """A neuron must pass both stages; its output is its distance from the resting value."""
    layer = worked().layer(0, CPU)
    given, z = torch.tensor([[1.0, -1.5, 2.0], [9.0, 9.0, 9.0]]), torch.tensor([[7.0, 9.0, 6.0], [2.0, -3.0, 2.9]])

    assert layer.outputs(given, z).tolist() == [[0.0, 4.0, 0.0], [0.0, -8.0, pytest.approx(-2.1)]]
    assert layer.reads.tolist() == [0, 5, 3, 0]


def test_outputs_without_a_gate_by_hand() -> None:
    """Only the distance from the resting value decides."""
    layer = plain(worked()).layer(0, CPU)
    z = torch.tensor([[3.0, 3.0, 7.5]])

    assert layer.outputs(z, z).tolist() == [[3.0, 0.0, 2.5]]
    assert layer.reads.tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_any_number_of_tokens(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each token alone, in its own dtype; comparisons are in fp32."""
    layer, alone = worked().layer(0, CPU), worked().layer(0, CPU)
    x, given, z = (3 * torch.randn(*shape, size).to(dtype) for size in (2, 3, 3))
    found = (layer.inputs(x), layer.gate(given), layer.outputs(given, z))
    tokens = zip(*(values.reshape(-1, values.shape[-1]) for values in (x, given, z)), strict=True)
    wanted = [(alone.inputs(a), alone.gate(b), alone.outputs(b, c)) for a, b, c in tokens]

    for ours, theirs in zip(found, zip(*wanted, strict=True), strict=True):
        assert ours.dtype == dtype
        assert ours.shape[:-1] == shape
        assert ours.reshape(-1, ours.shape[-1]).equal(torch.stack(theirs))
    assert layer.reads.tolist() == alone.reads.tolist()


def test_shares_of_what_was_read() -> None:
    """The mean over layers and tokens; None before the first token. Without a gate, up equals gate."""
    layers = [worked().layer(0, CPU) for _ in range(2)]
    assert shares_read(layers) is None
    for layer, reads in zip(layers, ([3, 5, 4, 2], [1, 1, 2, 2]), strict=True):
        layer.reads.copy_(torch.tensor(reads))

    assert shares_read(layers) == Shares(4 / 8, 6 / 12, 6 / 12)
    without = [replace(layer, gate_limits=None) for layer in layers]
    assert shares_read(without) == Shares(4 / 8, 4 / 8, 6 / 12)


@pytest.mark.parametrize("by", [worked(), plain(worked())], ids=["gated", "plain"])
def test_copies(by: Thresholds) -> None:
    """Copies are equal and have the same name; a clone has its own memory."""
    for other in (by.to(CPU), by.to_host(), by.clone()):
        assert all(ours.equal(theirs) for ours, theirs in zip(values(by), values(other), strict=True))
        assert (other.name(), other.planned, other.bytes) == (by.name(), by.planned, by.bytes)
        assert (other.gate_limits_LF is None) == (by.gate_limits_LF is None)
    own = {each.data_ptr() for each in values(by)}
    assert not own & {each.data_ptr() for each in values(by.clone())}


@pytest.mark.parametrize("name", TENSORS)
def test_a_name_is_of_all_values(name: str) -> None:
    """Any other value changes the name; another order in memory does not."""
    by = worked()
    changed: Tensor = getattr(by, name).clone()
    scattered = torch.stack((changed, changed), dim=-1)[..., 0]
    changed[0, 0] += 1e-6

    assert replace(by, **{name: scattered}).name() == by.name()
    assert replace(by, **{name: changed}).name() != by.name()


def test_each_layer_has_its_own() -> None:
    """A layer has its rows, and its counts begin at zero."""
    two = worked()._each(lambda each: torch.cat((each, each + 1)))
    first, second = two.layer(0, CPU), two.layer(1, CPU)
    first.inputs(torch.zeros(2))

    for name in ("means", "input_limits", "offsets", "gate_limits", "resting", "output_limits"):
        assert torch.equal(getattr(first, name) + 1, getattr(second, name))
    assert isinstance(second, LayerThresholds)
    assert second.reads.tolist() == [0, 0, 0, 0]


def test_a_report_is_a_copy() -> None:
    """It keeps its values after the thresholds change, and has the same name."""
    by, timer = worked(), Timer(CPU)
    pending = PendingSelection(by, 7, timer)
    timer.stop()
    selection = pending.selection()

    assert (selection.expert_set, selection.prompt_tokens) == (by.name(), 7)
    assert isinstance(selection.chosen, Thresholds)
    by.means_LD.zero_()
    assert selection.chosen.means_LD.any()
    assert selection.chosen.shares(3) == by.planned
