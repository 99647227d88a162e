"""The fused decode step against each family's own forward pass, token by token from a cache that the model filled."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import Weights, read_weights
from griffin.neurons import Acting, Correction, Kept
from tests.griffin import oracle
from tests.griffin.decode.interleaved import MODELS, interleaved_model
from tests.tiny import COMMON_BLOCK, tiny_model

fused = pytest.importorskip("griffin.decode.cuda.step", reason="needs triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTEXT = 64
PROMPT, TOKENS = 13, 2
LAYERS, WIDTH = 3, 52
IDS = torch.randint(3, 128, (PROMPT + TOKENS,), generator=torch.Generator().manual_seed(1))


def tiny_weights(family: str, dtype: torch.dtype = torch.float32) -> Weights:
    model = tiny_model(family).to(DEVICE, dtype)
    store_by_neuron_(feed_forwards(model))
    weights = read_weights(model)
    assert weights is not None
    return weights


@torch.no_grad()
def read_prompt(model: PreTrainedModel, step: "fused.FusedStep", order_S: Tensor | slice) -> DynamicCache:
    """What the model keeps of the prompt, in the step's cache too, where each key's elements have this order."""
    # Without a configuration no layer forgets what its window hides.
    cache = DynamicCache()
    model(IDS[None, :PROMPT], past_key_values=cache)
    for number, layer in enumerate(cache.layers):
        step.keys[number][:, :, :PROMPT] = layer.keys[..., order_S]
        step.values[number][:, :, :PROMPT] = layer.values
    step.position.fill_(PROMPT)
    return cache


@torch.no_grad()
def distance(
    model: PreTrainedModel,
    step: "fused.FusedStep",
    kept: Kept | None = None,
    tokens: int = TOKENS,
    order_S: Tensor | slice = slice(None),
) -> float:
    """The largest between logits, relative to them, of several tokens in a row: each reads what the last one left."""
    cache = read_prompt(model, step, order_S)
    worst = 0.0
    with oracle.masked(model, kept) if kept is not None else nullcontext():
        for token_id in IDS[PROMPT : PROMPT + tokens]:
            expected_V = model(token_id.view(1, 1), past_key_values=cache).logits[0, -1].float()
            step.token_id.copy_(token_id)
            step.run(CONTEXT)
            difference_V = step.logits_V.cpu().float() - expected_V
            worst = max(worst, float(difference_V.abs().max() / expected_V.abs().max()))
    assert int(step.position) == PROMPT + tokens
    return worst


def draw_kept(*counts: int, device: str = "cpu") -> Kept:
    """So many in each layer; where they are not as many in all, something stands for the others in two ways, and the
    kept ones act on some tokens only."""
    generator = torch.Generator().manual_seed(sum(counts))
    layers = [torch.randperm(WIDTH, generator=generator)[:k].sort().values.to(device) for k in counts]
    if len(set(counts)) == 1:
        return Kept(layers)
    offset_LD = torch.randn(LAYERS, 32, generator=generator).to(device)
    left = [torch.randn(k, 4, generator=generator).to(device) for k in counts]
    right = [torch.randn(4, 32, generator=generator).to(device) for _ in counts]
    # Such that some act on each token, and some rest.
    thresholds = [(10 ** (-2 * torch.rand(k, generator=generator))).to(device) for k in counts]
    resting = [(0.01 * torch.randn(k, generator=generator)).to(device) for k in counts]
    return Kept(layers, offset_LD, Correction(left, right), Acting(thresholds, resting, layers, count=0))


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_dense_step_is_the_model(family: str) -> None:
    """With all neurons kept, the logits are the model's own."""
    assert distance(tiny_model(family), fused.FusedStep(tiny_weights(family), CONTEXT)) < 1e-5


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_sparse_step_is_the_masked_model(family: str) -> None:
    """With some kept, those of the model whose other activations are zero."""
    step = fused.FusedStep(tiny_weights(family), CONTEXT)
    counts = (21, 5, 52)
    step.keep(draw_kept(*counts, device=DEVICE))

    assert distance(tiny_model(family), step, draw_kept(*counts), tokens=1) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_half_precision_rounds_as_the_model_does(family: str) -> None:
    """In fp16 a step is as near to the model as fp16 allows."""
    model = tiny_model(family).to(torch.float16)

    assert distance(model, fused.FusedStep(tiny_weights(family, torch.float16), CONTEXT)) < 5e-3


@pytest.mark.skipif(DEVICE != "cpu", reason="its weights are on the CPU")
@pytest.mark.parametrize("kind", MODELS)
def test_neighbours_may_turn_together(kind: str) -> None:
    """Interleaved rotary positions, of the whole head or of half of it."""
    model, weights, order_S = interleaved_model(kind)

    assert distance(model, fused.FusedStep(weights, CONTEXT), order_S=order_S) < 1e-5


def test_one_step_serves_any_selection_in_turn() -> None:
    """Few neurons after many, and all after one: nothing stays of the selection before."""
    model, step = tiny_model("llama"), fused.FusedStep(tiny_weights("llama"), CONTEXT)
    for counts in ((51, 51, 51), (21, 5, 52), (1, 1, 1)):
        step.keep(draw_kept(*counts, device=DEVICE))
        assert distance(model, step, draw_kept(*counts)) < 1e-5
    step.keep_all()

    assert distance(model, step) < 1e-5


def test_a_window_matters() -> None:
    """The prompts here are longer than the windows: without them the logits are others."""
    weights = tiny_weights("mistral")
    unlimited = replace(weights, layers=[replace(layer, window=None) for layer in weights.layers])

    assert distance(tiny_model("mistral"), fused.FusedStep(unlimited, CONTEXT), tokens=1) > 1e-2


def test_buckets_end_with_the_context() -> None:
    """Powers of two from 1024, none beyond the context length."""
    assert fused.buckets(600) == [600]
    assert fused.buckets(1024) == [1024]
    assert fused.buckets(5000) == [1024, 2048, 4096, 5000]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_recorded_step_follows_token_position_and_selection() -> None:
    """One graph, replayed: it reads on the device all that changes."""
    model, step = tiny_model("llama"), fused.FusedStep(tiny_weights("llama"), CONTEXT)
    step.run(CONTEXT)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run(CONTEXT)
    step.run = lambda bucket: graph.replay()
    for k in (21, 52):
        step.keep(draw_kept(*[k] * LAYERS, device=DEVICE))
        assert distance(model, step, draw_kept(*[k] * LAYERS)) < 1e-5
