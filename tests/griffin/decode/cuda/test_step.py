"""The fused decode step against each family's own forward pass, token by token after a prompt."""

from contextlib import nullcontext
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.decode.torch_step import LeanStep
from griffin.decode.twin import DecodeTwin
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import Weights, read_weights
from griffin.neurons import Kept
from griffin.thresholds import Shares, Thresholds
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
    """The model's cache after the prompt, also written to the step's. order_S: order of elements in the step's keys."""
    # Without a configuration, the cache also keeps the positions outside of a window.
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
    """The largest difference of logits over several tokens in a row, relative to the largest logit."""
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
    """Random kept neurons, ``counts`` in each layer."""
    generator = torch.Generator().manual_seed(sum(counts))
    return Kept([torch.randperm(WIDTH, generator=generator)[:k].sort().values.to(device) for k in counts])


def draw_thresholds(weights: Weights, scale: float = 1.0) -> Thresholds:
    """Random thresholds; with scale 1, each stage reads something and leaves something. A larger scale reads less."""
    generator = torch.Generator().manual_seed(5)
    gates = [layer.feed_forward.expanding()[0] for layer in weights.layers]
    gated = weights.layers[0].feed_forward.gated
    width = weights.width

    def drawn(size: int, factor: float) -> Tensor:
        return (factor * torch.randn(LAYERS, size, generator=generator)).to(DEVICE)

    means_LD = drawn(width, 0.3)
    offsets = [
        gate.matrix.dense().float() @ mean_D + (0 if gate.bias is None else gate.bias.float())
        for gate, mean_D in zip(gates, means_LD, strict=True)
    ]
    return Thresholds(
        planned=Shares(1, 1, 1),
        means_LD=means_LD,
        input_limits_LD=scale * drawn(width, 0.7).abs(),
        offsets_LF=torch.stack(offsets),
        gate_limits_LF=scale * drawn(WIDTH, 0.5).abs() if gated else None,
        resting_LF=drawn(WIDTH, 0.1),
        output_limits_LF=scale * drawn(WIDTH, 0.5).abs(),
    )


@torch.no_grad()
def distance_from_lean(
    model: PreTrainedModel, weights: Weights, step: "fused.FusedStep", thresholds: Thresholds
) -> tuple[float, Shares, Shares]:
    """Like ``distance``, but from the step in plain torch; and the shares that both have read."""
    cache = KVCache(LAYERS)
    model(IDS[None, :PROMPT].to(DEVICE), past_key_values=cache.cache)
    for number, layer in enumerate(cache.cache.layers):
        step.keys[number][:, :, :PROMPT] = layer.keys[..., :PROMPT, :]
        step.values[number][:, :, :PROMPT] = layer.values[..., :PROMPT, :]
    step.position.fill_(PROMPT)
    lean = LeanStep(weights, cache, DecodeTwin(model))
    lean.keep(thresholds)
    step.keep(thresholds)
    worst = 0.0
    for token_id in IDS[PROMPT:]:
        expected_V = lean(int(token_id)).float()
        step.token_id.copy_(token_id)
        step.run(CONTEXT)
        worst = max(worst, float((step.logits_V.float() - expected_V).abs().max() / expected_V.abs().max()))
    ours, theirs = step.shares(), lean.shares()
    assert ours is not None
    assert theirs is not None
    return worst, ours, theirs


def tiny_pair(family: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Weights]:
    model = tiny_model(family).to(DEVICE, dtype)
    store_by_neuron_(feed_forwards(model))
    weights = read_weights(model)
    assert weights is not None
    return model, weights


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_dense_step_is_the_model(family: str) -> None:
    """With all neurons kept, the logits are the model's own."""
    assert distance(tiny_model(family), fused.FusedStep(tiny_weights(family), CONTEXT)) < 1e-5


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_sparse_step_is_the_masked_model(family: str) -> None:
    """With some neurons kept, the logits are those of the model whose other activations are zero."""
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
def test_interleaved_rotary_positions(kind: str) -> None:
    """Rotary positions may rotate neighbouring elements, in the whole head or in half of it."""
    model, weights, order_S = interleaved_model(kind)

    assert distance(model, fused.FusedStep(weights, CONTEXT), order_S=order_S) < 1e-5


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_tokens_pick_as_in_plain_torch(family: str) -> None:
    """With thresholds, with a gate and without. Both steps count the same reads."""
    model, weights = tiny_pair(family)
    found, ours, theirs = distance_from_lean(
        model, weights, fused.FusedStep(weights, CONTEXT), draw_thresholds(weights)
    )

    assert found < 1e-5
    assert astuple(ours) == pytest.approx(astuple(theirs))
    assert 0 < ours.down < ours.up < 1
    assert 0 < ours.gate < 1


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_halves_pick_nearly_as_in_plain_torch(family: str) -> None:
    """In fp16, rounding may move a value across its limit."""
    model, weights = tiny_pair(family, torch.float16)
    found, ours, theirs = distance_from_lean(
        model, weights, fused.FusedStep(weights, CONTEXT), draw_thresholds(weights)
    )

    assert found < 1e-2
    assert astuple(ours) == pytest.approx(astuple(theirs), abs=0.02)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_tokens_that_pick_everything_are_the_models(family: str) -> None:
    """Means and resting values are subtracted and added again."""
    step = fused.FusedStep(tiny_weights(family), CONTEXT)
    step.keep(draw_thresholds(step.weights, scale=-1))

    assert distance(tiny_model(family), step) < 1e-5
    assert step.shares() == Shares(1, 1, 1)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_tokens_may_pick_nothing(family: str) -> None:
    """The blocks then give their output at rest."""
    model, weights = tiny_pair(family)
    found, ours, _ = distance_from_lean(
        model, weights, fused.FusedStep(weights, CONTEXT), draw_thresholds(weights, scale=1e6)
    )

    assert found < 1e-5
    assert ours == Shares(0, 0, 0)


def test_one_step_serves_any_choice_in_turn() -> None:
    """Many neurons, few, thresholds and all in turn: an earlier choice leaves no trace."""
    model, weights = tiny_pair("llama")
    reference, step = tiny_model("llama"), fused.FusedStep(weights, CONTEXT)
    for counts in ((51, 51, 51), (21, 5, 52), (1, 1, 1)):
        step.keep(draw_kept(*counts, device=DEVICE))
        assert distance(reference, step, draw_kept(*counts)) < 1e-5
        assert step.shares() is None
        found, *_ = distance_from_lean(model, weights, step, draw_thresholds(weights))
        assert found < 1e-5
    step.keep(None)

    assert distance(reference, step) < 1e-5
    assert step.shares() is None


def test_a_window_matters() -> None:
    """The prompts here are longer than the windows: a step without windows gives other logits."""
    weights = tiny_weights("mistral")
    unlimited = replace(weights, layers=[replace(layer, window=None) for layer in weights.layers])

    assert distance(tiny_model("mistral"), fused.FusedStep(unlimited, CONTEXT), tokens=1) > 1e-2


def test_buckets_end_with_the_context() -> None:
    """Powers of two from 1024, and the context length as the last."""
    assert fused.buckets(600) == [600]
    assert fused.buckets(1024) == [1024]
    assert fused.buckets(5000) == [1024, 2048, 4096, 5000]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_recorded_step_follows_token_position_and_selection() -> None:
    """The graph is replayed; everything that changes is read on the device."""
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
    step.keep(draw_thresholds(step.weights, scale=-1))
    assert distance(model, step) < 1e-5
    assert step.shares() == Shares(1, 1, 1)
