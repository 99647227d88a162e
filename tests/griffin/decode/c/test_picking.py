"""The compiled step by thresholds: every plain format, odd sizes, every instruction set, any number of threads.

``decode/test_thresholds.py`` compares it with other steps, ``test_grouped_step.py`` tests codes in groups.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.decode.c import library
from griffin.decode.c.picking import PickingBlocks
from griffin.decode.c.step import NativeStep
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.gates import GatesByInput
from griffin.model.layout import store_by_neuron_
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.int8 import Int8
from griffin.model.matrix.matrix import Matrix
from griffin.model.weights import FeedForwardWeights, Weights, read_weights
from griffin.thresholds import Thresholds
from tests.griffin import oracle
from tests.griffin.instructions import EACH_FOR_STEPS, restricted
from tests.griffin.method.thresholds import choices, differences, sided, thresholds_of, values
from tests.tiny import tiny_model

if os.environ.get("CI") != "true":
    pytestmark = pytest.mark.skipif(not library.available(), reason="griffin/_native was not built: no C compiler")

PROMPT, TOKENS, LAYERS = 13, 3, 2
IDS = torch.randint(3, 128, (PROMPT + TOKENS,), generator=torch.Generator().manual_seed(1))
# Activations stay fp32, and the model gets the format's numbers: nothing is rounded twice.
FORMATS: dict[str, Callable[[Tensor], Matrix]] = {
    "float32": Dense,
    "bfloat16": lambda numbers: Dense(numbers.bfloat16(), torch.float32),
    "float16": lambda numbers: Dense(numbers.half(), torch.float32),
    "int8": Int8.rounded,
}
EACH_FORMAT = pytest.mark.parametrize("name", FORMATS)
EACH = pytest.mark.parametrize(*EACH_FOR_STEPS.args, indirect=True, **EACH_FOR_STEPS.kwargs)


@pytest.fixture
def instructions(request: pytest.FixtureRequest) -> Iterator[int]:
    with restricted(request.param):
        yield request.param


def sized(family: str, width: int, neurons: int) -> PreTrainedModel:
    """In llama, the heads' size is free; in OPT, the heads divide the width."""
    sizes = {"hidden_size": width, "num_hidden_layers": LAYERS, "num_attention_heads": 3}
    if family == "opt":
        return tiny_model(family, **sizes, ffn_dim=neurons, word_embed_proj_dim=width)
    return tiny_model(family, **sizes, intermediate_size=neurons, num_key_value_heads=3, head_dim=22)


@torch.inference_mode()
def held_as(model: PreTrainedModel, name: str) -> Weights:
    """Weights whose FF blocks have this format. The model gets the same numbers in fp32."""
    store_by_neuron_(feed_forwards(model))
    weights = read_weights(model)
    assert weights is not None
    layers = [replace(layer, feed_forward=_held(layer.feed_forward, FORMATS[name])) for layer in weights.layers]
    for block, layer in zip(feed_forwards(model), layers, strict=True):
        expanding = [projection.matrix.dense() for projection in layer.feed_forward.expanding()]
        for own, numbers in zip(block.parts_FD, expanding, strict=True):
            own.dense().copy_(numbers)
        block.down.dense().copy_(layer.feed_forward.contract.dense())
    return replace(weights, layers=layers, gates=GatesByInput())


def _held(block: FeedForwardWeights, made: Callable[[Tensor], Matrix]) -> FeedForwardWeights:
    expand = replace(block.expand, parts=[made(part.dense().clone()) for part in block.expand.parts])
    return replace(block, expand=expand, contract=made(block.contract.dense().clone()))


@torch.no_grad()
def read_prompt(model: PreTrainedModel) -> KVCache:
    cache = KVCache(LAYERS)
    model(IDS[None, :PROMPT], past_key_values=cache.cache)
    return cache


def decode(step: NativeStep) -> Tensor:
    step._cache.length = PROMPT
    return torch.stack([step(int(id)).clone() for id in IDS[PROMPT:]])


def expected(model: PreTrainedModel, by: Thresholds | None) -> tuple[Tensor, oracle.Reads]:
    return oracle.step_by_step(model, IDS, PROMPT, by)


def distance(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).abs().max() / wanted.abs().max())


def check(model: PreTrainedModel, step: NativeStep, by: Thresholds, near: float = 1e-5) -> None:
    """The logits are the masked model's, and the step reads the same numbers of inputs and neurons."""
    step.keep(by)
    wanted, reads = expected(model, by)

    assert distance(decode(step), wanted) < near
    found = step.shares()
    assert found is not None
    assert differences(found, reads.shares(gated=by.gate_limits_LF is not None)) < 1e-12


@EACH
@EACH_FORMAT
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_every_format(family: str, name: str, instructions: int) -> None:
    """With a gate and without, by a prompt's thresholds and by extreme ones. Rows need loops, vectors and a rest."""
    model = sized(family, 216, 420)
    step = NativeStep(held_as(model, name), read_prompt(model), threads=2)
    by = thresholds_of(model, IDS[:PROMPT].tolist())
    for each in (by, *choices(by).values()):
        check(model, step, each)


@EACH
@EACH_FORMAT
@pytest.mark.parametrize(("width", "neurons"), [(105, 173), (33, 129), (9, 640), (264, 31), (48, 1), (3, 2)])
def test_odd_sizes(width: int, neurons: int, name: str, instructions: int) -> None:
    """Odd or tiny sizes: parts of tiles, rows of odd bytes, chunks of one neuron, fewer chunks than threads."""
    model = sized("llama", width, neurons)
    step = NativeStep(held_as(model, name), read_prompt(model), threads=3)
    by = thresholds_of(model, IDS[:PROMPT].tolist())
    for each in choices(by).values():
        check(model, step, each, near=2e-5)


@pytest.mark.parametrize("mixed", [("bfloat16", "int8"), ("int8", "float32"), ("float32", "float16")])
def test_a_format_for_each_projection(mixed: tuple[str, str]) -> None:
    """The gate has one format, the other matrices another."""
    model = sized("llama", 105, 173)
    gates, others = (held_as(model, name) for name in mixed)
    layers = []
    for layer, other in zip(gates.layers, others.layers, strict=True):
        gate, up = layer.feed_forward.expanding()[0], other.feed_forward.expanding()[1]
        expand = replace(layer.feed_forward.expand, parts=(gate.matrix, up.matrix))
        contract = other.feed_forward.contract
        layers.append(replace(layer, feed_forward=replace(layer.feed_forward, expand=expand, contract=contract)))
    # The model has all numbers in the others' format; copy the gate's numbers in its own format.
    for block, layer in zip(feed_forwards(model), layers, strict=True):
        with torch.inference_mode():
            block.parts_FD[0].dense().copy_(layer.feed_forward.expanding()[0].matrix.dense())
    step = NativeStep(replace(gates, layers=layers, gates=GatesByInput()), read_prompt(model), threads=2)
    for each in choices(thresholds_of(model, IDS[:PROMPT].tolist())).values():
        check(model, step, each)


@EACH_FORMAT
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_number_of_threads_changes_nothing(family: str, name: str) -> None:
    """Not one bit of a logit changes, and no share."""
    model = sized(family, 105, 1173)
    weights, by = held_as(model, name), thresholds_of(model, IDS[:PROMPT].tolist())
    steps = [NativeStep(weights, read_prompt(model), threads) for threads in (1, 2, 3)]
    for each in (by, *choices(by).values()):
        for step in steps:
            step.keep(each)
        one, *others = map(decode, steps)

        assert all(other.equal(one) for other in others)
        assert len({step.shares() for step in steps}) == 1


def test_steps_share_the_gates_by_input() -> None:
    """The first thresholds make them, once for all steps on the same weights."""
    model = sized("llama", 105, 173)
    weights, by = held_as(model, "float32"), sided(thresholds_of(model, IDS[:PROMPT].tolist()))
    steps = [NativeStep(weights, read_prompt(model), threads=1) for _ in range(2)]
    assert not weights.gates._matrices
    for step in steps:
        check(model, step, by)
    first, second = (step._picking._gates for step in steps if step._picking is not None)

    assert first is second
    for gate, layer in zip(first, weights.layers, strict=True):
        assert gate.dense().equal(layer.feed_forward.expanding()[0].matrix.dense().t())


def test_thresholds_are_held_while_they_are_used() -> None:
    """Thresholds of another dtype or layout are copied; the step holds the copy as long as it uses it."""
    model = sized("llama", 105, 173)
    step = NativeStep(held_as(model, "float32"), read_prompt(model), threads=2)
    by = sided(thresholds_of(model, IDS[:PROMPT].tolist()))
    wanted, _ = expected(model, by)
    scattered = by._each(lambda each: each.double().t().contiguous().t())
    step.keep(scattered)
    for each in values(scattered):
        each.fill_(torch.nan)
    del scattered

    assert distance(decode(step), wanted) < 1e-5


def test_thresholds_that_could_not_be_described_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in ``keep``, the step forgets the earlier thresholds and reads all neurons."""
    model = sized("llama", 105, 173)
    step = NativeStep(held_as(model, "float32"), read_prompt(model), threads=2)
    by = sided(thresholds_of(model, IDS[:PROMPT].tolist()))
    step.keep(by)
    with monkeypatch.context() as patch:
        patch.setattr(PickingBlocks, "describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step.keep(by)

    assert distance(decode(step), expected(model, None)[0]) < 1e-5
    assert step.shares() is None


@pytest.mark.parametrize(
    "field",
    ["means_LD", "input_limits_LD", "offsets_LF", "gate_limits_LF", "resting_LF", "output_limits_LF"],
)
@pytest.mark.parametrize("cut", [lambda each: each[1:], lambda each: each[:, 1:]], ids=["layers", "columns"])
def test_refuses_thresholds_of_another_model(field: str, cut: Callable[[Tensor], Tensor]) -> None:
    """Otherwise C would read beyond them."""
    model = sized("llama", 33, 129)
    step = NativeStep(held_as(model, "float32"), read_prompt(model), threads=1)
    by = thresholds_of(model, IDS[:PROMPT].tolist())

    with pytest.raises(ValueError, match=r"thresholds must be \(2, (33|129)\)"):
        step.keep(replace(by, **{field: cut(getattr(by, field))}))


def test_a_token_with_nan_has_no_finite_logit() -> None:
    """A token with NaN or infinite activations has no finite logit; the next token is right again."""
    model = sized("llama", 105, 173)
    weights = held_as(model, "float32")
    step = NativeStep(weights, read_prompt(model), threads=2)
    step.keep(thresholds_of(model, IDS[:PROMPT].tolist()))
    wanted = decode(step)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    row = embedding.weight.detach()[int(IDS[PROMPT])]
    before = row.clone()
    for value in (torch.nan, torch.inf):
        row.fill_(value)
        step._cache.length = PROMPT
        assert not step(int(IDS[PROMPT])).isfinite().any()
        row.copy_(before)

        assert decode(step).equal(wanted)
