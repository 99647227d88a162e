"""The decode step in plain torch against each family's own forward pass, token by token after a prompt."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.decode.torch_step import LeanStep
from griffin.decode.twin import DecodeTwin
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import QueryGrowth, Weights, read_weights
from griffin.neurons import Kept
from tests.griffin import oracle
from tests.griffin.decode.interleaved import MODELS, interleaved_model
from tests.tiny import COMMON_BLOCK, tiny_model

PROMPT, TOKENS = 13, 4
IDS = torch.randint(3, 128, (PROMPT + TOKENS,), generator=torch.Generator().manual_seed(1))
EVERY_THIRD = Kept([torch.arange(0, 52, 3)] * 3)


@torch.no_grad()
def step_of(model: PreTrainedModel, weights: Weights, order_S: Tensor | None = None) -> LeanStep:
    """A step after the prompt. order_S: the order of elements in the cached keys."""
    cache = KVCache(len(weights.layers))
    model(IDS[None, :PROMPT], past_key_values=cache.cache)
    for layer in cache.cache.layers if order_S is not None else ():
        layer.keys = layer.keys[..., order_S]
    return LeanStep(weights, cache, DecodeTwin(model))


@torch.no_grad()
def distance(model: PreTrainedModel, step: LeanStep, kept: Kept | None = None) -> float:
    """The largest difference of logits over several tokens in a row, relative to the largest logit."""
    # Without a configuration, the cache also keeps the positions outside of a window.
    cache = DynamicCache()
    model(IDS[None, :PROMPT], past_key_values=cache)
    step.keep(kept)
    with oracle.masked(model, kept) if kept is not None else nullcontext():
        wanted = torch.stack([model(id.view(1, 1), past_key_values=cache).logits[0, -1] for id in IDS[PROMPT:]])
    actual = torch.stack([step(int(id)) for id in IDS[PROMPT:]])
    return float((actual - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kept", [None, EVERY_THIRD], ids=["dense", "kept"])
@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_decodes_as_the_model_does(family: str, kept: Kept | None) -> None:
    """Every family, with all neurons and with some. The prompt is longer than every window."""
    model = tiny_model(family)
    store_by_neuron_(feed_forwards(model))
    weights = read_weights(model)
    assert weights is not None

    assert distance(model, step_of(model, weights), kept) < 1e-5


@pytest.mark.parametrize("kind", MODELS)
def test_interleaved_rotary_positions(kind: str) -> None:
    """Rotary positions may rotate neighbouring elements, in the whole head or in half of it."""
    model, weights, order_S = interleaved_model(kind)

    assert distance(model, step_of(model, weights, order_S)) < 1e-5


def test_queries_grow_by_whole_contexts() -> None:
    """Within the first context they do not grow."""
    growth = QueryGrowth(rate=0.5, context=4)

    assert [growth.factor(position) for position in (0, 3)] == [1, 1]
    assert growth.factor(4) == growth.factor(7) == pytest.approx(1 + 0.5 * 0.6931472)
    assert growth.factor(8) == pytest.approx(1 + 0.5 * 1.0986123)
