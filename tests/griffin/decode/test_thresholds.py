"""Steps that read by thresholds, against the masked model, token by token after a prompt that the model read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from griffin.decode.c.library import available
from griffin.decode.c.step import NativeStep
from griffin.decode.decoder import Step
from griffin.decode.torch_step import LeanStep
from griffin.decode.twin import DecodeTwin, TwinStep
from griffin.model.cache import KVCache
from griffin.model.families import FAMILIES, feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.matrix.modules import MatrixEmbedding, MatrixLinear
from griffin.model.quantise import Kind
from griffin.model.weights import read_weights
from griffin.neurons import Chosen, Kept
from griffin.thresholds import Shares, Thresholds
from tests.griffin import oracle
from tests.griffin.method.thresholds import choices, differences, everything, nothing, sided, thresholds_of
from tests.griffin.model.quantised import round_
from tests.tiny import COMMON_BLOCK, tiny_model

PROMPT, TOKENS = 13, 4
IDS = torch.randint(3, 128, (PROMPT + TOKENS,), generator=torch.Generator().manual_seed(1))
MakeStep = Callable[[PreTrainedModel, KVCache], Step]


def native(model: PreTrainedModel, cache: KVCache) -> Step:
    weights = read_weights(model)
    assert weights is not None
    return NativeStep(weights, cache, threads=2)


def lean(model: PreTrainedModel, cache: KVCache) -> Step:
    weights = read_weights(model)
    assert weights is not None
    return LeanStep(weights, cache, DecodeTwin(model))


def twin(model: PreTrainedModel, cache: KVCache) -> Step:
    return TwinStep(model, cache, DecodeTwin(model))


STEPS: dict[str, MakeStep] = {"native": native, "lean": lean, "twin": twin}
IN_ANY = [
    pytest.param(name, family, id=f"{name}-{family}")
    for name in STEPS
    for family in (FAMILIES if name == "twin" else COMMON_BLOCK)
    if name != "native" or available()
]


@torch.no_grad()
def step_of(name: str, model: PreTrainedModel) -> Step:
    """A step after the prompt."""
    store_by_neuron_(feed_forwards(model))
    cache = KVCache(model.config.num_hidden_layers)
    model(IDS[None, :PROMPT], past_key_values=cache.cache)
    return STEPS[name](model, cache)


@torch.inference_mode()
def decode(step: Step) -> Tensor:
    step._cache.length = PROMPT  # type: ignore[attr-defined]
    return torch.stack([step(int(id)).clone() for id in IDS[PROMPT:]]).float()


def expected(model: PreTrainedModel, chosen: Chosen | None) -> tuple[Tensor, oracle.Reads]:
    return oracle.step_by_step(model, IDS, PROMPT, chosen)


def distance(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted.float()).abs().max() / wanted.float().abs().max())


def same(found: Shares | None, wanted: Shares | None) -> bool:
    """Whether shares are equal, except for the rounding of their last bit."""
    return found is wanted if found is None or wanted is None else differences(found, wanted) < 1e-12


@pytest.mark.parametrize(("name", "family"), IN_ANY)
def test_decodes_as_the_masked_model(name: str, family: str) -> None:
    """Every step and family, by the prompt's thresholds and by extreme ones. The shares that are read also agree."""
    model, exact = tiny_model(family), tiny_model(family)
    by = thresholds_of(exact, IDS[:PROMPT].tolist())
    step = step_of(name, model)
    for kind, each in {"prompt": by, **choices(by)}.items():
        step.keep(each)
        assert step.shares() is None
        wanted, reads = expected(exact, each)

        assert distance(decode(step), wanted) < 1e-5, kind
        assert same(step.shares(), reads.shares(gated=by.gate_limits_LF is not None)), kind


@pytest.mark.parametrize(("name", "family"), IN_ANY)
def test_everything_read_is_the_full_model(name: str, family: str) -> None:
    """Also when resting values are far from the neurons' activations."""
    model, exact = tiny_model(family), tiny_model(family)
    step = step_of(name, model)
    step.keep(everything(thresholds_of(exact, IDS[:PROMPT].tolist())))

    assert distance(decode(step), expected(exact, None)[0]) < 1e-5
    assert step.shares() == Shares(1, 1, 1)


class Constant(nn.Module):
    """A module that always returns the same vector."""

    def __init__(self, value_D: Tensor) -> None:
        super().__init__()
        self.value_D = value_D

    def forward(self, z: Tensor) -> Tensor:
        # A copy, because some families add to it in place.
        return self.value_D.expand(*z.shape[:-1], -1).clone()


@pytest.mark.parametrize(("name", "family"), IN_ANY)
def test_nothing_read_is_what_blocks_give_at_rest(name: str, family: str) -> None:
    """A block then gives the same vector for all tokens: W_d times the resting values, plus the bias."""
    model, exact = tiny_model(family), tiny_model(family)
    by = nothing(thresholds_of(exact, IDS[:PROMPT].tolist()))
    step = step_of(name, model)
    step.keep(by)
    cache = DynamicCache()
    with torch.no_grad():
        exact(IDS[None, :PROMPT], past_key_values=cache)
        contracts = oracle.contracts(exact)
        at_rest = [module(resting_F) for module, resting_F in zip(contracts, by.resting_LF, strict=True)]
        paths = [path for path, module in exact.named_modules() if module in contracts]
        for path, rest_D in zip(paths, at_rest, strict=True):
            exact.set_submodule(path, Constant(rest_D))
        logits = [exact(id.view(1, 1), past_key_values=cache).logits[0, -1] for id in IDS[PROMPT:]]

    assert distance(decode(step), torch.stack(logits)) < 1e-5
    assert step.shares() == Shares(0, 0, 0)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("name", STEPS)
def test_every_activation(name: str, family: str, activation: str) -> None:
    """In blocks with a gate and without."""
    change = {"hidden_act" if family == "llama" else "activation_function": activation}
    model, exact = tiny_model(family, **change), tiny_model(family, **change)
    by = thresholds_of(exact, IDS[:PROMPT].tolist())
    step = step_of(name, model)
    step.keep(by)
    wanted, reads = expected(exact, by)

    assert distance(decode(step), wanted) < 1e-5
    assert same(step.shares(), reads.shares(gated=family == "llama"))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1)], ids=["fp16", "bf16"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "opt"])
@pytest.mark.parametrize("name", STEPS)
def test_halves_stay_near_the_masked_model(name: str, family: str, dtype: torch.dtype, near: float) -> None:
    """The masked model has the same weights in fp32. Rounding may move a few values across the prompt's thresholds."""
    model = tiny_model(family).to(dtype)
    exact = tiny_model(family).to(dtype).float()
    by = thresholds_of(exact, IDS[:PROMPT].tolist())
    step = step_of(name, model)
    for each in choices(by).values():
        step.keep(each)

        assert distance(decode(step), expected(exact, each)[0]) < near
    step.keep(by)
    decode(step)
    found, reads = step.shares(), expected(exact, by)[1]
    assert found is not None
    assert differences(found, reads.shares(gated=family != "opt")) < 0.03


@torch.no_grad()
def rounded_model(kind: Kind, family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with the weights of ``--quantize``, and one with the same numbers in plain fp32."""
    sizes = {"hidden_size": 64, "intermediate_size": 192}
    if family == "opt":
        sizes = {"hidden_size": 64, "ffn_dim": 192, "word_embed_proj_dim": 64}
    rounded, exact = tiny_model(family, **sizes), tiny_model(family, **sizes)
    round_(rounded, kind)
    for path, module in rounded.named_modules():
        if isinstance(module, MatrixLinear | MatrixEmbedding):
            numbers = module.matrix.dense()
            by_input = isinstance(module, MatrixLinear) and module.by_input
            exact.get_submodule(path).weight.copy_(numbers.t() if by_input else numbers)
    return rounded, exact


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("name", STEPS)
def test_rounded_weights(name: str, family: str, kind: Kind) -> None:
    """Weights of ``--quantize`` give the masked model's numbers, except that some steps also round activations."""
    rounded, exact = rounded_model(kind, family)
    by = thresholds_of(rounded, IDS[:PROMPT].tolist())
    step = step_of(name, rounded)
    for each in choices(by).values():
        step.keep(each)
        wanted, reads = expected(exact, each)

        assert distance(decode(step), wanted) < 2e-4
        assert same(step.shares(), reads.shares(gated=family == "llama"))


@pytest.mark.parametrize("name", STEPS)
def test_an_earlier_choice_leaves_no_trace(name: str) -> None:
    """Thresholds, kept neurons and everything in any order; counts start at zero with each."""
    model, exact = tiny_model("llama"), tiny_model("llama")
    by = thresholds_of(exact, IDS[:PROMPT].tolist())
    kept = Kept([torch.arange(0, 52, 3)] * 3)
    step = step_of(name, model)
    for chosen in (by, kept, sided(by), None, by, nothing(by), kept, None):
        step.keep(chosen)
        assert step.shares() is None
        wanted, reads = expected(exact, chosen)

        assert distance(decode(step), wanted) < 1e-5
        assert same(step.shares(), reads.shares(gated=True) if isinstance(chosen, Thresholds) else None)


def test_several_tokens_at_once() -> None:
    """The twin reads a text in one pass, as scores and comparisons do, and counts each token."""
    model, exact = tiny_model("llama"), tiny_model("llama")
    by = thresholds_of(exact, IDS[:PROMPT].tolist())
    tree = DecodeTwin(model)
    tree.load(by)
    with torch.no_grad(), oracle.masked(exact, by) as reads:
        wanted = exact(IDS[None]).logits

    with torch.inference_mode():
        assert distance(tree.model(IDS[None]).logits, wanted) < 1e-5
    assert same(tree.shares(), reads.shares(gated=True))
