"""The compiled step on extreme numbers: rows of an embedding, a half-precision cache, very small and large floats."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.c import library
from griffin.decode.c.step import NativeStep
from griffin.model.cache import KVCache
from griffin.model.checkpoint.gguf_codes import GROUPINGS
from griffin.model.exact import keep_exact_
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.modules import MatrixLinear
from griffin.model.weights import read_weights
from griffin.neurons import Chosen, Kept
from griffin.thresholds import Shares, Thresholds
from tests.griffin.instructions import EACH_FOR_STEPS, restricted
from tests.griffin.model.coded import coded_model, laid_columns, laid_rows, sized_tensor
from tests.griffin.model.quantised import HALVES, plain
from tests.tiny import tiny_model

if os.environ.get("CI") != "true":
    pytestmark = pytest.mark.skipif(not library.available(), reason="griffin/_native was not built: no C compiler")

T = GGMLQuantizationType
LAYERS, ID = 2, 5
KINDS = pytest.mark.parametrize("kind", GROUPINGS, ids=lambda kind: kind.name)


@pytest.fixture
def instructions(request: pytest.FixtureRequest) -> Iterator[int]:
    with restricted(request.param):
        yield request.param


EACH = pytest.mark.parametrize(*EACH_FOR_STEPS.args, indirect=True, **EACH_FOR_STEPS.kwargs)


def step_of(model: PreTrainedModel, threads: int = 1) -> NativeStep:
    """A step before its first token."""
    weights, cache = read_weights(model), KVCache(LAYERS)
    assert weights is not None
    none = torch.empty(1, weights.kv_heads, 0, weights.head_size, dtype=weights.dtype)
    for number in range(LAYERS):
        cache.cache.update(none, none, number)
    return NativeStep(weights, cache, threads)


@torch.no_grad()
def still_(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """Set modules of plain numbers to zero, so that they return zero for every input."""
    for name, module in model.named_modules():
        if name.endswith(names):
            for tensor in (*module.buffers(), *module.parameters()):
                tensor.zero_()
    return model


def near(found: Tensor, wanted: Tensor, bound: float = 1e-4) -> None:
    assert found.isfinite().all()
    assert float((found - wanted).abs().max()) <= bound * float(wanted.abs().max())


# ---- Rows of an embedding. ----


@KINDS
@pytest.mark.parametrize("width", [256, 768, 576, 96])
def test_rows_of_an_embedding(kind: GGMLQuantizationType, width: int) -> None:
    """All sublayers give zero, so the logits are a token's row, normed."""
    if width % GROUPINGS[kind].unit:
        pytest.skip("rows of such blocks are whole superblocks")
    sizes = {"hidden_size": width, "intermediate_size": 32, "vocab_size": width, "head_dim": 8}
    coded, exact = coded_model(lambda name: kind if "embed" in name else T.F32, **sizes)
    still_(coded, "o_proj", "down_proj")
    coded.lm_head.matrix.dense().copy_(torch.eye(width))
    step, table = step_of(coded), exact.get_input_embeddings().weight

    with torch.no_grad():
        for id in range(0, width, 31):
            near(step(id), exact.model.norm(table[id]), 1e-6)


# ---- Half precision. ----


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What the cache stores in this dtype for a token whose value is ``values``; a bias sets them."""
    sizes = {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": len(values)}
    model = tiny_model("llama", num_hidden_layers=LAYERS, attention_bias=True, **sizes).to(dtype)
    still_(model, "v_proj")
    for layer in model.model.layers:
        keep_exact_(layer.self_attn.v_proj, "bias", values)
    step = step_of(model)
    step(ID)
    return step._cache.reserve(1)[0][1][0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_rounding_to_half_precision(dtype: torch.dtype) -> None:
    """Rounds as torch does: all values, the middle of two values, its neighbours, and floats of random bits."""
    halves = torch.arange(2**16).to(torch.uint16).view(dtype).float()
    ordered = halves[halves.isfinite()].sort().values
    # The last value comes twice, because heads have an even size.
    ordered = torch.cat((ordered, ordered[-1:]))
    between = ((ordered[1:].double() + ordered[:-1].double()) / 2).float()
    up, down = (between.nextafter(torch.tensor(limit)) for limit in (torch.inf, -torch.inf))
    bits = torch.randint(-(2**31), 2**31, (2**16,), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    ends = torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 1e-45, 2**-25, 2**-24, 3e38, -3e38])

    for values in (halves, between, up, down, bits.view(torch.float32), ends.repeat(2)):
        found, wanted = stored(values, dtype).float(), values.to(dtype).float()
        assert torch.equal(found.isnan(), wanted.isnan())
        assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7))


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_widening_half_precision(dtype: torch.dtype, instructions: int) -> None:
    """All values, one in each row of the head: in the widest loop, in a vector and in the rest."""
    width = 84
    model = tiny_model("llama", num_hidden_layers=LAYERS, hidden_size=width, vocab_size=2**16)
    still_(model, "o_proj", "down_proj", "embed_tokens")
    halves = torch.arange(2**16).to(torch.uint16).view(dtype)
    for column in (3, 70, 82):
        with torch.no_grad():
            model.get_input_embeddings().weight.zero_()[ID, column] = 1
        rows = torch.zeros(2**16, width, dtype=dtype)
        rows[:, column] = halves
        model.set_output_embeddings(MatrixLinear(Dense(rows, torch.float32), None, by_input=False))
        found = step_of(model)(ID)
        factor = found[halves == 1]

        assert torch.equal(found.isnan(), halves.isnan())
        assert torch.equal(found.nan_to_num(7), (halves.float() * factor).nan_to_num(7))


# ---- Inputs at the ends of what floats can be. ----


def sharp(count: int, of: float, others: float) -> Tensor:
    values = others * torch.randn(count, generator=torch.Generator().manual_seed(3))
    values[37] = of
    return values


def ranged(count: int) -> Tensor:
    """Every 32 neighbours have another magnitude."""
    sizes = 10.0 ** torch.linspace(-12, 12, count // 32)
    return sizes.repeat_interleave(32) * torch.randn(count, generator=torch.Generator().manual_seed(3))


INPUTS = {
    "zeros": torch.zeros,
    "tiny": lambda count: sharp(count, 1e-20, 1e-20),
    "one": lambda count: sharp(count, 1.0, 0.0),
    "one-huge": lambda count: sharp(count, -1e6, 1e-3),
    "ranged": ranged,
    "huge": lambda count: sharp(count, 1e15, 1e15),
}


def normed(matrix: GroupedRows, x_D: Tensor) -> NativeStep:
    """A step whose logits are a matrix times x. x is the weight of the last norm."""
    width = len(x_D)
    model = tiny_model("llama", num_hidden_layers=LAYERS, hidden_size=width, rms_norm_eps=1e-30)
    still_(model, "o_proj", "down_proj")
    with torch.no_grad():
        model.get_input_embeddings().weight[ID] = 1
        model.model.norm.weight.copy_(x_D)
    model.set_output_embeddings(MatrixLinear(matrix, None, by_input=False))
    return step_of(model)


@EACH
@KINDS
def test_rows_times_any_input(kind: GGMLQuantizationType, instructions: int) -> None:
    data = sized_tensor(kind, 128, 256)
    matrix, exact = laid_rows(kind, data, (128, 256)), plain(data, kind).double()
    for make in INPUTS.values():
        x_D = make(256)

        near(normed(matrix, x_D)(ID), exact @ x_D.double())


@EACH
@pytest.mark.parametrize("kind", [T.Q4_K, T.Q8_0], ids=lambda kind: kind.name)
def test_rows_times_nan_infinity_and_tiny_numbers(kind: GGMLQuantizationType, instructions: int) -> None:
    """NaN and infinity are not rounded to numbers. Inputs that are too small for a reciprocal count as zero."""
    matrix = laid_rows(kind, sized_tensor(kind, 128, 256), (128, 256))
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not normed(matrix, sharp(256, value, 1.0))(ID).isfinite().any()
    for value in (1e-32, 1e-38, 1e-44):
        assert normed(matrix, sharp(256, value, value))(ID).abs().max() < 1e-29


def extreme_tensor(kind: GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    """A third of the blocks has scales of zero, another third has subnormal scales."""
    data = sized_tensor(kind, rows, columns)
    blocks = data.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for place in HALVES[kind]:
        blocks[::3, place : place + 2] = 0
        blocks[1::3, place + 1] = blocks[1::3, place + 1] & 0x83
    return data


@EACH
@KINDS
def test_scales_that_are_zero_or_less_than_normal(kind: GGMLQuantizationType, instructions: int) -> None:
    """In products of rows with x, and in sums of weighted rows."""
    data = extreme_tensor(kind, 256, 256)
    exact, x_D = plain(data, kind).double(), INPUTS["ranged"](256)
    rows, columns = laid_rows(kind, data, (256, 256)), laid_columns(kind, data, (256, 256))
    step, kept = contracted(columns, x_D)

    near(normed(rows, x_D)(ID), exact @ x_D.double())
    for each in kept:
        step.keep(each)
        near(step(ID), scaled(exact @ kept_only(x_D, each)))


def contracted(matrix: GroupedColumns, z_F: Tensor) -> tuple[NativeStep, list[Chosen | None]]:
    """A step whose logits are the normed sum of rows weighted by z, over two layers; and choices for it."""
    neurons, width = matrix.shape
    sizes = {"hidden_size": width, "intermediate_size": neurons, "vocab_size": width}
    model = tiny_model("llama", num_hidden_layers=LAYERS, rms_norm_eps=1e-30, **sizes)
    still_(model, "o_proj", "embed_tokens", "gate_proj", "up_proj", "down_proj", "layernorm")
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(torch.eye(width))
        for layer in model.model.layers:
            # Their product is z, because silu(32) is 32.
            layer.mlp.gate_proj.bias.fill_(32.0)
            layer.mlp.up_proj.bias.copy_(z_F / 32)
            # The first block reads zeros; with a smaller epsilon their norm would be NaN.
            layer.input_layernorm.variance_epsilon = layer.post_attention_layernorm.variance_epsilon = 1.0
            layer.mlp.down_proj = MatrixLinear(matrix, None, by_input=True)
    layers = [torch.arange(0, neurons, 3), torch.arange(1, neurons, 2)]
    numbers_LF = torch.stack([torch.arange(neurons) + layer for layer in range(LAYERS)])
    acting = Thresholds(
        planned=Shares(1, 0.75, 0.75),
        means_LD=torch.zeros(LAYERS, width),
        input_limits_LD=torch.full((LAYERS, width), -1.0),
        offsets_LF=torch.full((LAYERS, neurons), 32.0),
        gate_limits_LF=torch.where(numbers_LF % 4 == 0, 1e9, -1.0),
        resting_LF=torch.zeros(LAYERS, neurons),
        output_limits_LF=torch.full((LAYERS, neurons), -1.0),
    )
    return step_of(model), [None, Kept(layers), acting]


def kept_only(z_F: Tensor, chosen: Chosen | None) -> Tensor:
    """The sum of z over both layers, where the neuron is kept or acts; else 0."""
    if chosen is None:
        return 2 * z_F.double()
    if isinstance(chosen, Thresholds):
        assert chosen.gate_limits_LF is not None
        return (chosen.gate_limits_LF < 0).sum(dim=0) * z_F.double()
    found_F = torch.zeros(len(z_F), dtype=torch.float64)
    for kept_k in chosen.layers:
        found_F[kept_k] += z_F[kept_k].double()
    return found_F


def scaled(sum_D: Tensor) -> Tensor:
    return sum_D / sum_D.square().mean().sqrt()


@EACH
@KINDS
def test_weighted_rows_of_any_weights(kind: GGMLQuantizationType, instructions: int) -> None:
    data = sized_tensor(kind, 256, 512)
    matrix, exact = laid_columns(kind, data, (512, 256)), plain(data, kind).double()
    for name in ("one", "one-huge", "ranged", "huge"):
        z_F = INPUTS[name](512)
        step, kept = contracted(matrix, z_F)
        for each in kept:
            total = kept_only(z_F, each)
            step.keep(each)
            if total.any():
                near(step(ID), scaled(exact @ total))


@EACH
@pytest.mark.parametrize("kind", [T.Q4_K, T.Q8_0], ids=lambda kind: kind.name)
def test_nan_and_infinite_weights(kind: GGMLQuantizationType, instructions: int) -> None:
    matrix = laid_columns(kind, sized_tensor(kind, 256, 512), (512, 256))
    for value in (torch.nan, torch.inf):
        step, _ = contracted(matrix, sharp(512, value, 1.0))

        assert not step(ID).isfinite().any()
