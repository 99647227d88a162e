"""The compiled step on codes of GGUF files, against the same values in fp32, with every instruction set."""

import os
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.decode.c import library
from griffin.decode.c.step import NativeStep
from griffin.model.cache import KVCache
from griffin.model.checkpoint.gguf_codes import GROUPINGS
from griffin.model.weights import Weights, read_weights
from griffin.neurons import Chosen, Kept
from tests.griffin import oracle
from tests.griffin.decode.c import passes
from tests.griffin.instructions import EACH_FOR_STEPS, restricted
from tests.griffin.method import thresholds
from tests.griffin.model.coded import coded_model

if os.environ.get("CI") != "true":
    pytestmark = pytest.mark.skipif(not library.available(), reason="griffin/_native was not built: no C compiler")

T = GGMLQuantizationType
PROMPT, TOKENS, LAYERS = 9, 3, 2
IDS = torch.randint(3, 128, (PROMPT + TOKENS,), generator=torch.Generator().manual_seed(1))
# Activations are rounded to 16 bits, block by block; the rest is fp32.
NEAR = 2e-4
KINDS = pytest.mark.parametrize("kind", GROUPINGS, ids=lambda kind: kind.name)
BLOCKS_OF_32 = [kind for kind, grouping in GROUPINGS.items() if not grouping.two_levels]
SUPERBLOCKS = [kind for kind, grouping in GROUPINGS.items() if grouping.two_levels]


@pytest.fixture
def instructions(request: pytest.FixtureRequest) -> Iterator[int]:
    with restricted(request.param):
        yield request.param


EACH = pytest.mark.parametrize(*EACH_FOR_STEPS.args, indirect=True, **EACH_FOR_STEPS.kwargs)


@cache
def of_kind(
    kind: GGMLQuantizationType, width: int = 256, neurons: int = 512
) -> tuple[PreTrainedModel, PreTrainedModel]:
    return coded_model(lambda _: kind, hidden_size=width, intermediate_size=neurons, head_dim=width // 4)


def mixed_kind(name: str) -> GGMLQuantizationType:
    """Several types side by side, also plain numbers; the layers differ."""
    first = ".layers.0." in name
    return {
        "embed_tokens": T.Q6_K,
        "q_proj": T.Q4_K if first else T.BF16,
        "k_proj": T.Q8_0 if first else T.Q4_0,
        "v_proj": T.F16 if first else T.Q6_K,
        "o_proj": T.Q5_0 if first else T.F32,
        "gate_proj": T.Q4_K if first else T.F16,
        "up_proj": T.Q6_K if first else T.Q2_K,
        "down_proj": T.Q6_K if first else T.Q3_K,
        "lm_head": T.Q5_1,
    }[name.rpartition(".")[2]]


def partly_plain(name: str) -> GGMLQuantizationType:
    """In each block, some matrices have codes in groups and some have plain numbers."""
    first = ".layers.0." in name
    return {
        "gate_proj": T.Q4_1 if first else T.BF16,
        "up_proj": T.F16 if first else T.Q5_1,
        "down_proj": T.F32 if first else T.Q4_0,
    }.get(name.rpartition(".")[2], T.Q8_0)


def choices(exact: PreTrainedModel) -> dict[str, Chosen | None]:
    """Kept neurons, and thresholds that rounding cannot cross."""
    neurons, generator = exact.config.intermediate_size, torch.Generator().manual_seed(2)

    def some(*counts: int) -> Kept:
        return Kept([torch.randperm(neurons, generator=generator)[:count].sort().values for count in counts])

    by = thresholds.thresholds_of(exact, IDS[:PROMPT].tolist())
    return {
        "all": None,
        "every": some(neurons, neurons),
        "half": some(neurons // 2, neurons // 2),
        "one": some(1, 1),
        "ragged": some(neurons // 3 + 1, neurons - 1),
        **thresholds.choices(by),
        "few": thresholds.sided(by, seed=3, share=0.02),
        "most": thresholds.sided(by, seed=4, share=0.98),
    }


class Rounded(DynamicCache):
    """A cache whose keys and values are rounded to a dtype; the model still computes in fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rounded = (states.to(self.dtype).float() for states in (key_states, value_states))
        found: tuple[Tensor, Tensor] = super().update(*rounded, *args, **kwargs)
        return found


def read(coded: PreTrainedModel) -> Weights:
    weights = read_weights(coded)
    assert weights is not None
    return weights


@torch.no_grad()
def read_prompt(exact: PreTrainedModel, dtype: torch.dtype = torch.float32) -> KVCache:
    """The cache after the prompt, which the model read in fp32."""
    source, cache = Rounded(dtype), KVCache(LAYERS)
    exact(IDS[None, :PROMPT], past_key_values=source)
    for number, layer in enumerate(source.layers):
        cache.cache.update(layer.keys.to(dtype), layer.values.to(dtype), number)
    return cache


@torch.no_grad()
def expected(exact: PreTrainedModel, chosen: Chosen | None, dtype: torch.dtype = torch.float32) -> Tensor:
    cache = Rounded(dtype)
    exact(IDS[None, :PROMPT], past_key_values=cache)
    with oracle.masked(exact, chosen):
        return torch.stack([exact(id.view(1, 1), past_key_values=cache).logits[0, -1] for id in IDS[PROMPT:]])


def decode(step: NativeStep) -> Tensor:
    step._cache.length = PROMPT
    return torch.stack([step(int(id)).clone() for id in IDS[PROMPT:]])


def distance(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).abs().max() / wanted.abs().max())


def check_all_choices(coded: PreTrainedModel, exact: PreTrainedModel) -> None:
    step = NativeStep(read(coded), read_prompt(exact), threads=2)
    found = {}
    for name, chosen in choices(exact).items():
        step.keep(chosen)
        found[name] = distance(decode(step), expected(exact, chosen))
        step._cache.length = PROMPT
        passes.check(step, chosen, (2, 7))
    step.close()
    assert max(found.values()) < NEAR, found


@EACH
@KINDS
def test_every_type_of_codes(kind: GGMLQuantizationType, instructions: int) -> None:
    """All matrices have one type. A token reads all neurons, kept ones, or what it picks."""
    check_all_choices(*of_kind(kind))


@EACH
@pytest.mark.parametrize(("width", "neurons"), [(64, 96), (192, 352), (320, 1056), (576, 64), (128, 448)])
@pytest.mark.parametrize("kind", BLOCKS_OF_32, ids=lambda kind: kind.name)
def test_widths_that_end_in_part_of_a_tile(
    kind: GGMLQuantizationType, width: int, neurons: int, instructions: int
) -> None:
    """The number of blocks of 32 is free, and the FF block is cut into chunks between them."""
    check_all_choices(*of_kind(kind, width, neurons))


@EACH
@pytest.mark.parametrize("width", [512, 768])
@pytest.mark.parametrize("kind", [T.Q2_K, T.Q4_K, T.Q6_K], ids=lambda kind: kind.name)
def test_widths_of_several_superblocks(kind: GGMLQuantizationType, width: int, instructions: int) -> None:
    """A tile has two superblocks, or one at the end of a row."""
    check_all_choices(*of_kind(kind, width, 256))


@EACH
@pytest.mark.parametrize("neurons", [64, 320, 96])
@pytest.mark.parametrize("kind", SUPERBLOCKS, ids=lambda kind: kind.name)
def test_gates_that_end_in_part_of_a_tile(kind: GGMLQuantizationType, neurons: int, instructions: int) -> None:
    """A gate stored by input has a column for each neuron. Unless 64 divides their number, it is plain numbers."""
    check_all_choices(
        *coded_model(
            lambda name: kind if "gate_proj" in name else T.Q8_0,
            hidden_size=512,
            intermediate_size=neurons,
            head_dim=64,
        )
    )


@EACH
@pytest.mark.parametrize("kind_of", [mixed_kind, partly_plain])
def test_types_beside_each_other(kind_of, instructions: int) -> None:  # type: ignore[no-untyped-def]
    """Types are mixed in one projection and in one block, also with plain numbers."""
    check_all_choices(*coded_model(kind_of, hidden_size=256, intermediate_size=512, head_dim=64))


@pytest.mark.parametrize("kind", [T.Q4_1, T.Q5_0, T.Q8_0, T.Q4_K, T.Q6_K], ids=lambda kind: kind.name)
def test_the_number_of_threads_changes_nothing(kind: GGMLQuantizationType) -> None:
    """Not one bit of a logit changes, and no share."""
    coded, exact = of_kind(kind)
    weights = read(coded)
    steps = [NativeStep(weights, read_prompt(exact), threads) for threads in (1, 2, 3)]
    for chosen in (thresholds.thresholds_of(exact, IDS[:PROMPT].tolist()), *choices(exact).values()):
        for step in steps:
            step.keep(chosen)
        one, *others = map(decode, steps)

        assert all(other.equal(one) for other in others)
        assert len({step.shares() for step in steps}) == 1


@EACH
@KINDS
def test_thresholds_of_a_prompt(kind: GGMLQuantizationType, instructions: int) -> None:
    """Rounding may move a value across its threshold, so the masked model is only nearer than the full one."""
    coded, exact = of_kind(kind)
    by = thresholds.thresholds_of(exact, IDS[:PROMPT].tolist())
    step = NativeStep(read(coded), read_prompt(exact), threads=2)
    step.keep(by)
    found, full = decode(step), expected(exact, None)

    assert 3 * distance(found, expected(exact, by)) < distance(found, full)


@EACH
@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)], ids=["fp16", "bf16"])
@pytest.mark.parametrize("kind", [T.Q4_0, T.Q6_K], ids=lambda kind: kind.name)
def test_keys_and_values_of_half_precision(
    kind: GGMLQuantizationType, dtype: torch.dtype, near: float, instructions: int
) -> None:
    """Keys and values are rounded to the cache's dtype, in the prompt and in each token; activations are not."""
    coded, exact = coded_model(lambda _: kind, dtype, hidden_size=256, intermediate_size=256, head_dim=64)
    step = NativeStep(read(coded), read_prompt(exact, dtype), threads=2)
    for name in ("all", "half", "sided"):
        chosen = choices(exact)[name]
        step.keep(chosen)

        assert distance(decode(step), expected(exact, chosen, dtype)) < near
    keys, values = step._cache.reserve(PROMPT + TOKENS)[0]
    assert keys.dtype == values.dtype == dtype


def test_goes_from_one_choice_to_another() -> None:
    """In any order, an earlier choice leaves no trace."""
    coded, exact = of_kind(T.Q4_K)
    step = NativeStep(read(coded), read_prompt(exact), threads=2)
    of_name = choices(exact)
    for name in ("sided", "one", "half", "few", "all", "ragged", "everything", "nothing", "every", "all"):
        step.keep(of_name[name])

        assert distance(decode(step), expected(exact, of_name[name])) < NEAR
