"""The decode twin against the masked model, logits by logits; and what a request may ask of it."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from griffin.decode.twin import DecodeTwin
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.neurons import Correction, Kept
from griffin.request import Pruning
from tests.griffin import oracle


@torch.no_grad()
def test_twin_equals_masked_model(model: PreTrainedModel) -> None:
    """All logits, for any number of kept neurons, in turn on one twin."""
    ids = torch.randint(3, 128, (1, 10), generator=torch.Generator().manual_seed(1))
    blocks = feed_forwards(model)
    twin = DecodeTwin(model)
    # Counts by layer, over again where there are more layers; where they differ, more stands for the others.
    for seed, counts in enumerate(([26], [1], [51, 3, 20], [52], [13], [9, 52])):
        torch.manual_seed(seed)
        each = [counts[number % len(counts)] for number in range(len(blocks))]
        kept = Kept([torch.randperm(52)[:k].sort().values for k in each])
        if len(counts) > 1:
            correction = Correction([torch.randn(k, 4) for k in each], [torch.randn(4, 32) for _ in each])
            kept = Kept(kept.layers, torch.randn(len(blocks), 32), correction)
        twin.load(kept)
        with oracle.masked(model, kept):
            expected = model(ids).logits

        assert (twin.model(ids).logits - expected).abs().max() < 1e-5


@torch.no_grad()
def test_storage_by_neuron_changes_no_value(model: PreTrainedModel) -> None:
    """The layout is the weights' own business: the same logits, and one neuron is one contiguous row."""
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    store_by_neuron_(feed_forwards(model))

    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=0)
    for projection in oracle.contracts(model):
        weight = projection.weight if projection.weight.shape[0] == 52 else projection.weight.t()
        assert weight.is_contiguous()


def test_twin_shares_all_other_weights(model: PreTrainedModel) -> None:
    """Only the FF projections of the twin hold memory of their own."""
    shared = {parameter.data_ptr() for parameter in model.parameters()}

    assert {parameter.data_ptr() for parameter in DecodeTwin(model).model.parameters()} <= shared


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan, math.inf])
def test_impossible_sparsity_is_refused(sparsity: float) -> None:
    """0 <= sparsity < 1, and nothing else."""
    with pytest.raises(ValueError, match="sparsity must be at least 0 and below 1"):
        Pruning(sparsity)


def test_unknown_choices_are_refused_with_the_known() -> None:
    """A mistyped strategy is not replaced by a default."""
    with pytest.raises(ValueError, match="selection must be one of top_k, sample, top_k_sample"):
        Pruning(0.5, selection="topk")
    with pytest.raises(ValueError, match="statistic must be one of flocking, magnitude"):
        Pruning(0.5, statistic="flock")
