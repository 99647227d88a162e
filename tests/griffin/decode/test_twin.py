"""The decode twin against the masked model, logit by logit, and the buffers of requests with other sparsities."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from griffin.decode.buffers import FullRoom, GrowingRoom, Room, room_for
from griffin.decode.twin import DecodeTwin
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.neurons import Kept
from griffin.request import Pruning
from tests.griffin import oracle
from tests.tiny import tiny_model


@torch.no_grad()
def test_twin_equals_masked_model(model: PreTrainedModel) -> None:
    """All logits agree for any number of kept neurons, in turn on one twin."""
    ids = torch.randint(3, 128, (1, 10), generator=torch.Generator().manual_seed(1))
    blocks = feed_forwards(model)
    twin = DecodeTwin(model)
    # Kept neurons in each layer; the list repeats if the model has more layers.
    for seed, counts in enumerate(([26], [1], [51, 3, 20], [52], [13], [9, 52])):
        torch.manual_seed(seed)
        each = [counts[number % len(counts)] for number in range(len(blocks))]
        kept = Kept([torch.randperm(52)[:k].sort().values for k in each])
        twin.load(kept)
        with oracle.masked(model, kept):
            expected = model(ids).logits

        assert (twin.model(ids).logits - expected).abs().max() < 1e-5


@torch.no_grad()
def test_storage_by_neuron_changes_no_value(model: PreTrainedModel) -> None:
    """The layout changes no logit, and each neuron is one contiguous row."""
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    store_by_neuron_(feed_forwards(model))

    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=0)
    for projection in oracle.contracts(model):
        weight = projection.weight if projection.weight.shape[0] == 52 else projection.weight.t()
        assert weight.is_contiguous()


def test_twin_shares_all_other_weights(model: PreTrainedModel) -> None:
    """The twin's parameters are the model's own."""
    shared = {parameter.data_ptr() for parameter in model.parameters()}

    assert {parameter.data_ptr() for parameter in DecodeTwin(model).model.parameters()} <= shared


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan, math.inf])
def test_impossible_sparsity_is_refused(sparsity: float) -> None:
    """Only 0 <= sparsity < 1 is allowed."""
    with pytest.raises(ValueError, match="sparsity must be at least 0 and below 1"):
        Pruning(sparsity)


def test_unknown_choices_are_refused_with_the_known() -> None:
    """A mistyped strategy is an error that lists the known ones; no default replaces it."""
    with pytest.raises(ValueError, match="selection must be one of top_k, sample, top_k_sample"):
        Pruning(0.5, selection="topk")
    with pytest.raises(ValueError, match="statistic must be one of flocking, magnitude"):
        Pruning(0.5, statistic="flock")


@torch.no_grad()
@pytest.mark.parametrize("room", [FullRoom, GrowingRoom])
def test_requests_may_keep_more_and_fewer_neurons_than_the_first(model: PreTrainedModel, room: type[Room]) -> None:
    """With each kind of buffers, all logits are the masked model's."""
    ids = torch.tensor([[5, 9, 17, 33, 4]])
    twin = DecodeTwin(model, room)
    for seed, count in enumerate((3, 20, 52, 1, 20)):
        torch.manual_seed(seed)
        kept = Kept([torch.randperm(52)[:count].sort().values for _ in feed_forwards(model)])
        loaded = twin.load(kept)
        with oracle.masked(model, kept):
            expected = model(ids).logits

        assert {layer.contract.row_count for layer in loaded} == {count}
        assert (twin.model(ids).logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("room", "sizes"), [(FullRoom, [52, 52, 52]), (GrowingRoom, [5, 20, 20])])
def test_how_large_buffers_are(room: type[Room], sizes: list[int]) -> None:
    """They have full size from the start, or the size of the largest request so far."""
    twin, found = DecodeTwin(tiny_model("llama"), room), []
    for count in (5, 20, 3):
        twin.load(Kept([torch.arange(count)] * 3))
        found += {layer.room.buffers.neurons for layer in twin._layers if layer.room.buffers}

    assert found == sizes


def test_buffers_grow_where_memory_is_taken_at_once() -> None:
    """On a CPU, untouched memory costs nothing. Elsewhere, and for a model on the host, buffers grow."""
    assert room_for(torch.device("cpu"), on_host=False) is FullRoom
    assert room_for(torch.device("cpu"), on_host=True) is GrowingRoom
    assert room_for(torch.device("cuda"), on_host=False) is GrowingRoom


@pytest.mark.parametrize("room", [FullRoom, GrowingRoom])
def test_a_request_without_memory_leaves_room_for_the_next(room: type[Room], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error for lack of memory, no buffer is left."""
    twin, calls = DecodeTwin(tiny_model("llama"), room), iter(range(100))

    def full(*arguments: object, **options: object) -> torch.Tensor:
        if next(calls) > 4:
            raise torch.OutOfMemoryError
        return torch.zeros(*arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr("griffin.decode.twin.torch.empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            twin.load(Kept([torch.arange(20)] * 3))

    assert all(layer.room.buffers is None for layer in twin._layers)
    assert len(twin.load(Kept([torch.arange(4)] * 3))) == 3
