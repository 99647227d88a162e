"""The compiled decode step against each family's own forward pass, token by token after a prompt."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.decode.c import library
from griffin.decode.c.description import supported
from griffin.decode.c.room import Room
from griffin.decode.c.step import NativeStep
from griffin.decode.torch_step import LeanStep
from griffin.decode.twin import DecodeTwin
from griffin.library import compiled
from griffin.method.statistic import PromptStatistic
from griffin.model.cache import SMALLEST_CAPACITY, KVCache
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.int8 import Int8
from griffin.model.weights import Layer, Weights, read_weights
from griffin.neurons import Kept
from tests.griffin import oracle
from tests.griffin.decode.c import passes
from tests.griffin.decode.interleaved import MODELS, interleaved_model
from tests.griffin.model.quantised import round_
from tests.tiny import COMMON_BLOCK, tiny_model

# In CI, a step that was not built is a failure.
if os.environ.get("CI") != "true":
    pytestmark = pytest.mark.skipif(not library.available(), reason="griffin/_native was not built: no C compiler")

PROMPT, TOKENS = 13, 4
LAYERS, WIDTH = 3, 52
IDS = torch.randint(3, 128, (PROMPT + TOKENS,), generator=torch.Generator().manual_seed(1))
EVERY_THIRD = Kept([torch.arange(0, WIDTH, 3)] * LAYERS)


def ragged(neurons: int) -> Kept:
    """Kept neurons whose number differs by layer."""
    return Kept([torch.arange(0, neurons, step) for step in (2, 7, 1)])


RAGGED = ragged(WIDTH)


def prepared(model: PreTrainedModel) -> Weights:
    store_by_neuron_(feed_forwards(model))
    weights = read_weights(model)
    assert weights is not None
    return weights


@torch.no_grad()
def read_prompt(model: PreTrainedModel, length: int = PROMPT) -> KVCache:
    cache = KVCache(model.config.num_hidden_layers)
    model(IDS[None, :length], past_key_values=cache.cache)
    return cache


def decode(step: NativeStep, ids: Tensor = IDS[PROMPT:]) -> Tensor:
    """Each token's logits, ``(T, V)``. Each token also sees the tokens before it."""
    return torch.stack([step(int(id)).clone() for id in ids])


@torch.no_grad()
def expected(model: PreTrainedModel, kept: Kept | None = None) -> Tensor:
    # Without a configuration, the cache also keeps the positions outside of a window.
    cache = DynamicCache()
    model(IDS[None, :PROMPT], past_key_values=cache)
    with oracle.masked(model, kept) if kept is not None else nullcontext():
        return torch.stack([model(id.view(1, 1), past_key_values=cache).logits[0, -1] for id in IDS[PROMPT:]])


def distance(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted.float()).abs().max() / wanted.float().abs().max())


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def step(model: PreTrainedModel) -> Iterator[NativeStep]:
    step = NativeStep(prepared(model), read_prompt(model), threads=2)
    yield step
    step.close()


def test_it_is_built() -> None:
    """In CI it must be built: an installation with a compiler builds it."""
    assert library.available()


@pytest.mark.parametrize("kept", [None, EVERY_THIRD, RAGGED], ids=["dense", "kept", "ragged"])
@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_decodes_as_the_model_does(family: str, kept: Kept | None) -> None:
    """Every family in fp32, with all neurons and with some."""
    model = tiny_model(family)
    step = NativeStep(prepared(model), read_prompt(model), threads=2)
    step.keep(kept)

    assert distance(decode(step), expected(model, kept)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [None, ragged(420)], ids=["dense", "ragged"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_many_long_rows(family: str, kept: Kept | None, dtype: torch.dtype) -> None:
    """Rows of 216 numbers need rounds of the widest loop, a vector and a rest, and several rows are read at once.

    Rows in the tests above are shorter than one round, and few enough to be read one by one.
    """
    sizes = {"ffn_dim": 420, "word_embed_proj_dim": 216} if family == "opt" else {"intermediate_size": 420}
    model = tiny_model(family, hidden_size=216, **sizes)
    weights = prepared(model.to(dtype))
    step, lean = (
        NativeStep(weights, read_prompt(model), threads=2),
        LeanStep(weights, read_prompt(model), DecodeTwin(model)),
    )
    step.keep(kept)
    lean.keep(kept)
    wanted = torch.stack([lean(int(id)).clone() for id in IDS[PROMPT:]])

    # In bfloat16 the lean step rounds, and more in longer rows. A missing block would be far outside of this bound.
    assert distance(decode(step), wanted) < (1e-5 if dtype == torch.float32 else 1e-1)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_computes_every_activation(family: str, activation: str) -> None:
    """In blocks with a gate and without."""
    name = "hidden_act" if family == "llama" else "activation_function"
    model = tiny_model(family, **{name: activation})
    step = NativeStep(prepared(model), read_prompt(model), threads=2)

    assert distance(decode(step), expected(model)) < 1e-5


@pytest.mark.parametrize("kept", [None, EVERY_THIRD, RAGGED], ids=["dense", "kept", "ragged"])
@pytest.mark.parametrize("family", COMMON_BLOCK)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_near_the_same_step_in_torch(dtype: torch.dtype, family: str, kept: Kept | None) -> None:
    """The compiled step rounds less: the lean step is further from fp32 than from it."""
    model = tiny_model(family).to(dtype)
    weights, twin = prepared(model), DecodeTwin(model)
    step = NativeStep(weights, read_prompt(model), threads=2)
    lean = LeanStep(weights, read_prompt(model), twin)
    step.keep(kept)
    lean.keep(kept)

    tolerance = {torch.bfloat16: 5e-2, torch.float16: 2e-2}[dtype]
    assert distance(decode(step), torch.stack([lean(int(id)).clone() for id in IDS[PROMPT:]])) < tolerance


@pytest.mark.parametrize("count", [1, 2, 31, 33, WIDTH - 1, WIDTH])
def test_keeps_any_number_of_neurons(model: PreTrainedModel, step: NativeStep, count: int) -> None:
    """From one neuron to all, and other ones in each layer."""
    kept = Kept([torch.randperm(WIDTH)[:count].sort().values for _ in range(LAYERS)])
    step.keep(kept)

    assert distance(decode(step), expected(model, kept)) < 1e-5


def test_goes_from_one_choice_to_another(model: PreTrainedModel, step: NativeStep) -> None:
    """From many neurons to few and to all: an earlier choice leaves no trace."""
    for kept in (RAGGED, EVERY_THIRD, Kept([torch.tensor([1, 4, 7])] * LAYERS), RAGGED, None):
        step.keep(kept)
        actual = decode(step)
        step._cache.length = PROMPT

        assert distance(actual, expected(model, kept)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype) -> None:
    """Not one bit changes, also with odd sizes: no sum depends on which thread computes what."""
    sizes = {"hidden_size": 105, "intermediate_size": 173, "num_attention_heads": 3, "num_key_value_heads": 3}
    model = tiny_model("llama", **sizes, head_dim=22).to(dtype)
    weights, kept = prepared(model), Kept([torch.arange(0, 173, 2)] * LAYERS)
    one, *others = (NativeStep(weights, read_prompt(model), threads) for threads in (1, 2, 3))
    dense, sparse = decode(one), None
    if dtype == torch.float32:
        assert distance(dense, expected(model)) < 1e-5
    one.keep(kept)
    sparse = decode(one)

    for step in others:
        assert torch.equal(decode(step), dense)
        step.keep(kept)
        assert torch.equal(decode(step), sparse)


@pytest.mark.parametrize("kept", [None, RAGGED], ids=["dense", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_a_pass_gives_the_bits_of_steps(family: str, dtype: torch.dtype, kept: Kept | None) -> None:
    """In logits, keys and values, for any number of tokens and threads, with a window and without."""
    model = tiny_model(family).to(dtype)
    weights = prepared(model)
    for threads in (1, 3):
        passes.check(NativeStep(weights, read_prompt(model), threads), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_of_long_rows_and_many_positions(dtype: torch.dtype) -> None:
    """Rows of all widths that have a loop, positions in several blocks, and a cache that moves during the pass."""
    model = tiny_model("mistral", hidden_size=216, intermediate_size=1059).to(dtype)
    cache = read_prompt(model)
    step = NativeStep(prepared(model), cache, threads=2)
    while cache.length < 2 * SMALLEST_CAPACITY - 5:
        step(int(IDS[cache.length % PROMPT]))

    passes.check(step, None)
    passes.check(step, ragged(1059))


def test_int8_gives_the_bits_of_steps() -> None:
    """Also when each row has its own scale."""
    model = tiny_model("llama", hidden_size=216, intermediate_size=420)
    round_(model, "int8")
    passes.check(NativeStep(prepared(model), read_prompt(model), threads=2), ragged(420))


def test_a_pass_through_all_neurons_leaves_what_is_kept(model: PreTrainedModel, step: NativeStep) -> None:
    """A step can read all neurons and the kept ones in turn."""
    dense = decode(step)
    step.keep(RAGGED)
    step._cache.length = PROMPT
    kept = decode(step)
    for _ in range(2):
        step._cache.length = PROMPT
        assert torch.equal(step.read(IDS[PROMPT:].tolist(), full=True), dense)
        step._cache.length = PROMPT
        assert torch.equal(step.read(IDS[PROMPT:].tolist()), kept)


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_observes_what_hooks_see(family: str) -> None:
    """``observe`` returns the same activations as the hooks in the model's own forward pass."""
    model = tiny_model(family)
    weights, ids = prepared(model), IDS[PROMPT:].tolist()
    statistic = PromptStatistic(feed_forwards(model))
    statistic.reset(TOKENS)
    cache = read_prompt(model)
    with statistic.collecting(), torch.no_grad():
        wanted = model(IDS[None, PROMPT:], past_key_values=cache.cache).logits[0]
    step = NativeStep(weights, read_prompt(model), threads=2)
    step.keep(RAGGED)
    logits, found = step.observe(ids, 2)

    assert distance(logits, wanted[-2:]) < 1e-5
    for layer, expected_here in enumerate(statistic.latest()):
        for name in ("x", "gate", "up", "z"):
            values, wanted_here = getattr(found[layer][1:], name), getattr(expected_here, name)
            assert (values is None) == (wanted_here is None)
            assert values is None or distance(values, wanted_here) < 1e-4


def test_more_tokens_than_one_pass_has_room_for(step: NativeStep) -> None:
    """They are read in several passes."""
    many = [3, 5, 7] * library.MOST_TOKENS
    wanted = torch.stack([step(id).clone() for id in many])
    step._cache.length = PROMPT

    assert torch.equal(step.read(many), wanted)


def test_refuses_passes_without_a_token_or_with_an_unknown_one(step: NativeStep) -> None:
    """The cache does not change."""
    with pytest.raises(ValueError, match="tokens"):
        step.read([])
    with pytest.raises(IndexError, match="id"):
        step.read([3, 128])
    assert step._cache.length == PROMPT


@pytest.mark.parametrize("kind", MODELS)
def test_interleaved_rotary_positions(kind: str) -> None:
    """Rotary positions may rotate neighbouring elements, in the whole head or in half of it."""
    model, weights, order_S = interleaved_model(kind)
    cache = read_prompt(model)
    for layer in cache.cache.layers:
        layer.keys = layer.keys[..., order_S].contiguous()

    assert distance(decode(NativeStep(weights, cache, threads=2)), expected(model)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "ministral3", "olmo3", "smollm3"])
def test_attends_to_many_blocks_of_positions(family: str) -> None:
    """With a window and without, while the cache grows and moves."""
    model = tiny_model(family)
    weights, cache = prepared(model), read_prompt(model)
    step = NativeStep(weights, cache, threads=2)
    ids = torch.randint(3, 128, (SMALLEST_CAPACITY,), generator=torch.Generator().manual_seed(2))

    with torch.no_grad():
        wanted = model(torch.cat((IDS[:PROMPT], ids))[None]).logits[0, PROMPT:]

    assert distance(decode(step, ids), wanted) < 1e-4
    assert cache.length == PROMPT + len(ids) > SMALLEST_CAPACITY


def test_shares_the_cache_with_the_model(model: PreTrainedModel, step: NativeStep) -> None:
    """The model reads what the step wrote, and the step what the model wrote."""
    wanted = expected(model)
    first = step(int(IDS[PROMPT])).clone()
    with torch.no_grad():
        second = model(IDS[PROMPT + 1].view(1, 1), past_key_values=step._cache.cache).logits[0, -1]
    third = step(int(IDS[PROMPT + 2])).clone()

    assert distance(torch.stack([first, second, third]), wanted[:3]) < 1e-5


def test_steps_on_the_same_weights_run_at_the_same_time() -> None:
    """Steps on the same weights run at the same time, each with its own threads and cache; callers' threads change."""
    model = tiny_model("llama")
    weights = prepared(model)
    steps = [NativeStep(weights, read_prompt(model), threads=2) for _ in range(2)]
    steps[1].keep(EVERY_THIRD)
    wanted = [expected(model), expected(model, EVERY_THIRD)]

    def again(step: NativeStep) -> Tensor:
        step._cache.length = PROMPT
        return decode(step)

    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            for actual, wanted_TV in zip(pool.map(again, steps), wanted, strict=True):
                assert distance(actual, wanted_TV) < 1e-5


def test_a_closed_step_stays_closed(step: NativeStep) -> None:
    """It may be closed again. To use it again is an error."""
    step.close()
    step.close()

    with pytest.raises(RuntimeError, match="closed"):
        step(3)
    with pytest.raises(RuntimeError, match="closed"):
        step.keep(None)


def test_neurons_that_were_not_copied_are_not_used(
    model: PreTrainedModel, step: NativeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If ``keep`` fails, the step reads all neurons, not half-filled buffers."""
    step.keep(RAGGED)
    with monkeypatch.context() as patch:
        patch.setattr(Room, "describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step.keep(EVERY_THIRD)

    assert distance(decode(step), expected(model)) < 1e-5


def test_threads_end_with_the_step(model: PreTrainedModel) -> None:
    """Also when the step is garbage collected before it was closed."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc")
    weights, cache = prepared(model), read_prompt(model)
    before = len(os.listdir("/proc/self/task"))
    step = NativeStep(weights, cache, threads=4)
    assert len(os.listdir("/proc/self/task")) == before + 3
    del step

    assert len(os.listdir("/proc/self/task")) == before


@pytest.mark.parametrize(
    ("kept_k", "layers"),
    [
        (torch.arange(3, dtype=torch.int32), LAYERS),
        (torch.arange(3), LAYERS - 1),
        (torch.arange(4).view(2, 2), LAYERS),
        (torch.arange(0), LAYERS),
        (torch.tensor([WIDTH]), LAYERS),
        (torch.tensor([-1]), LAYERS),
        (torch.tensor([2, 1]), LAYERS),
        (torch.tensor([1, 1]), LAYERS),
    ],
)
def test_refuses_neurons_that_are_not_there(step: NativeStep, kept_k: Tensor, layers: int) -> None:
    """Otherwise C would read beyond the weights."""
    with pytest.raises(ValueError, match=r"neurons|layers"):
        step.keep(Kept([kept_k] * layers))


def test_refuses_what_it_would_read_beyond(model: PreTrainedModel, step: NativeStep) -> None:
    """Ids outside of the vocabulary, positions without a learned embedding, and a cache of another shape."""
    with pytest.raises(IndexError, match="id"):
        step(128)
    with pytest.raises(IndexError, match="id"):
        step(-1)
    learned = tiny_model("opt")
    cache = read_prompt(learned)
    step = NativeStep(prepared(learned), cache, threads=1)
    cache.length = learned.config.max_position_embeddings
    with pytest.raises(IndexError, match="position"):
        step(3)
    step = NativeStep(prepared(model), read_prompt(tiny_model("llama", head_dim=16)), threads=1)
    with pytest.raises(ValueError, match="cache"):
        step(3)


@pytest.mark.parametrize("kept", [None, EVERY_THIRD, RAGGED], ids=["dense", "kept", "ragged"])
@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_int8_decodes_as_the_rounded_model_does(family: str, kept: Kept | None) -> None:
    """It reads the codes in place. The prompt and each token use the same rounded weights."""
    model = tiny_model(family)
    round_(model, "int8")
    step = NativeStep(prepared(model), read_prompt(model), threads=2)
    step.keep(kept)

    assert distance(decode(step), expected(model, kept)) < 1e-4


@pytest.mark.parametrize("kept", [None, ragged(420)], ids=["dense", "ragged"])
def test_a_format_for_each_projection(kept: Kept | None) -> None:
    """Three formats in one model; keys and values stay in the model's own dtype."""
    model = tiny_model("llama", hidden_size=216, intermediate_size=420).to(torch.bfloat16)
    weights, plain = prepared(model), model.dtype
    mixed = replace(weights, layers=[_mixed(layer) for layer in weights.layers])
    steps = [NativeStep(each, read_prompt(model), threads=2) for each in (weights, mixed)]
    for step in steps:
        step.keep(kept)
    exact, found = map(decode, steps)

    assert {matrix.format for matrix in mixed.matrices()} == {"float32", "bfloat16", "int8"}
    assert mixed.dtype == plain
    assert 0 < distance(found, exact) < 0.05


def _mixed(layer: Layer) -> Layer:
    block = layer.feed_forward
    output = replace(layer.output, parts=(Dense(layer.output.matrix.dense().float()),))
    expand = replace(block.expand, parts=(Dense(block.expand.matrix.dense().float()),))
    contract = Int8.rounded(block.contract.dense())
    return replace(layer, output=output, feed_forward=replace(block, expand=expand, contract=contract))


def test_supports_weights_that_lie_in_rows() -> None:
    """Weights in another layout are refused."""
    weights = prepared(tiny_model("llama"))
    head = Dense(weights.head.matrix.dense().t().contiguous().t())
    scattered = replace(weights, head=replace(weights.head, parts=(head,)))

    assert supported(weights)
    assert not supported(scattered)
    with pytest.raises(ValueError, match="weights"):
        NativeStep(scattered, KVCache(LAYERS), threads=1)


@pytest.mark.parametrize("contents", [None, b"not a library"], ids=["absent", "broken"])
def test_goes_without_a_library(tmp_path: Path, caplog: pytest.LogCaptureFixture, contents: bytes | None) -> None:
    """If the library is absent or broken, the step is not available and the log says why."""
    if contents is not None:
        (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        assert library._load(compiled(tmp_path)) is None

    assert "decoding without the compiled step" in caplog.text


def test_goes_without_a_library_of_another_version(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library with another layout counts as not available."""
    path = compiled()
    if path is None:
        pytest.skip("the compiled step was not built")
    assert library._load(path) is not None
    monkeypatch.setattr(library, "LAYOUT", library.LAYOUT + (1 << 56))
    with caplog.at_level(logging.WARNING):
        assert library._load(path) is None

    assert "is of another version" in caplog.text
