"""Each kernel against a few lines of plain torch, at sizes that do not fill a tile."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from griffin.model.weights import ACTIVATIONS, Norm, QueryGrowth

kernels = pytest.importorskip("griffin.decode.cuda.kernels", reason="needs triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative to the largest value. The interpreter cuts bf16 instead of rounding it.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}
# More than one tile of columns, and the last is not full.
D = 300


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def nans(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory that must not be read, or that a kernel must overwrite."""
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def scalar(value: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([value], dtype=dtype, device=DEVICE)


def make_norm(kind: str, width: int, dtype: torch.dtype) -> Norm | None:
    """A norm as families have it: RMS in the model's dtype or in fp32, or layer norm."""
    return {
        "none": None,
        "rms": Norm(1 + 0.1 * randn(width).to(dtype), None, 1e-5, False),
        "rms_fp32": Norm(1 + 0.1 * randn(width), None, 1e-6, False),
        "layer": Norm(1 + 0.1 * randn(width).to(dtype), randn(width, dtype=dtype), 1e-5, True),
    }[kind]


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    """The norm in fp32, over the last dimension."""
    x = x.float()
    if norm is None:
        return x
    shape = x.shape[-1:]
    weight, bias = norm.weight.float(), norm.bias.float() if norm.bias is not None else None
    if norm.centred:
        return functional.layer_norm(x, shape, weight, bias, norm.eps)
    return functional.rms_norm(x, shape, weight, norm.eps)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("columns", "largest", "expected"),
    [(4096, 4096, 4096), (5120, 4096, 1024), (3584, 1024, 512), (576, 4096, 256), (32, 4096, 32), (1, 4096, 1)],
)
def test_column_tile_leaves_little_over(columns: int, largest: int, expected: int) -> None:
    """The widest of the tiles that waste least."""
    assert kernels.column_tile(columns, largest) == expected


def test_many_programs_for_small_projections_and_tall_tiles_for_large() -> None:
    """A head of 128 256 rows, 4096 rows, SmolLM2, and a projection for a single program."""
    assert kernels.weight_tile(128256, 4096) == (8, 512)
    assert kernels.weight_tile(4096, 4096) == (2, 2048)
    assert kernels.weight_tile(576, 1536) == (2, 512)
    assert kernels.weight_tile(7, 8) == (8, 8)


def test_splits_follow_the_size_only() -> None:
    """Attention has at most 64 splits of at least 64 positions; a weighted sum has at most 64 parts of rows."""
    assert [kernels.split_size(length) for length in (1, 64, 4096, 4097, 131072)] == [64, 64, 64, 128, 2048]
    assert kernels.row_splits(11008, 4096) == 64
    assert kernels.row_splits(13824, 5120) == 52
    assert kernels.row_splits(20, 32) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learned", [False, True])
def test_embed(dtype: torch.dtype, learned: bool) -> None:
    """One scaled row; where positions are learned, its position's row is added."""
    embedding_VD, positions_CD, x_D = randn(9, D, dtype=dtype), randn(5, D, dtype=dtype), nans(D, dtype=dtype)
    kernels.embed(scalar(8), scalar(4), embedding_VD, 2.5, positions_CD if learned else None, x_D)

    assert_near(x_D, 2.5 * embedding_VD[8].float() + (positions_CD[4].float() if learned else 0), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "rms", "rms_fp32", "layer"])
@pytest.mark.parametrize("width", [D, 7])
def test_project(dtype: torch.dtype, kind: str, width: int) -> None:
    """With a norm before and a bias after."""
    x_D, weight_ND, bias_N = randn(width, dtype=dtype), 0.1 * randn(37, width, dtype=dtype), randn(37, dtype=dtype)
    norm, out_N = make_norm(kind, width, dtype), nans(37, dtype=dtype)
    kernels.project(x_D, weight_ND, out_N, bias_N=bias_N, norm=norm)

    assert_near(out_N, weight_ND.float() @ normed(x_D, norm) + bias_N.float(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_project_caps_and_adds_in_place(dtype: torch.dtype) -> None:
    """With a cap, with a factor, and added to the residual."""
    x_D, weight_ND, residual_N = randn(D, dtype=dtype), randn(37, D, dtype=dtype), randn(37, dtype=dtype)
    y_N = weight_ND.float() @ x_D.float()
    capped_N, summed_N = nans(37, dtype=dtype), residual_N.clone()
    kernels.project(x_D, weight_ND, capped_N, cap=30.0)
    kernels.project(x_D, weight_ND, summed_N, residual_MN=summed_N)
    factored_N = residual_N.clone()
    kernels.project(x_D, weight_ND, factored_N, factor=0.3, residual_MN=factored_N)

    assert_near(capped_N, 30 * (y_N / 30).tanh(), dtype)
    assert_near(summed_N, y_N + residual_N.float(), dtype)
    assert_near(factored_N, 0.3 * y_N + residual_N.float(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["rms", "rms_fp32", "layer"])
@pytest.mark.parametrize("factor", [None, 0.3])
def test_normalise_add(dtype: torch.dtype, kind: str, factor: float | None) -> None:
    """A sublayer's output is normed, multiplied by the factor, then added."""
    x_D, y_D, norm = randn(D, dtype=dtype), 5 * randn(D, dtype=dtype), make_norm(kind, D, dtype)
    expected_D = x_D.float() + (factor or 1) * normed(y_D, norm)
    assert norm is not None
    kernels.normalise_add(x_D, y_D, norm, factor)

    assert_near(x_D, expected_D, dtype)


def rotated(x_XS: Tensor, position: int, frequencies_R: Tensor | None, scaling: float, *, interleaved: bool) -> Tensor:
    """Rotate the first 2R elements of each head as complex numbers: pairs of neighbours, or one from each half."""
    if frequencies_R is None:
        return x_XS
    R = len(frequencies_R)
    turn_R = torch.polar(torch.full_like(frequencies_R, scaling), position * frequencies_R)
    dim = 2 if interleaved else 1
    first_XR, second_XR = x_XS[:, : 2 * R].unflatten(1, (R, 2) if interleaved else (2, R)).unbind(dim)
    turned_XR = torch.complex(first_XR, second_XR) * turn_R
    turned = torch.stack([turned_XR.real, turned_XR.imag], dim=dim).flatten(1)
    return torch.cat([turned, x_XS[:, 2 * R :]], dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("over", ["none", "head", "all"])
@pytest.mark.parametrize(("R", "interleaved"), [(0, False), (3, False), (5, False), (3, True), (5, True)])
def test_rotate_and_store(dtype: torch.dtype, over: str, R: int, interleaved: bool) -> None:
    """Queries are returned. Keys and values go into the cache at their position, and nothing else is written."""
    H, G, S, C, position = 6, 2, 10, 7, 4
    qkv = randn((H + 2 * G) * S, dtype=dtype)
    kind = "none" if over == "none" else "rms"
    query_norm, key_norm = [make_norm(kind, S * (heads if over == "all" else 1), dtype) for heads in (H, G)]
    frequencies_R = torch.rand(R, device=DEVICE) if R else None
    q_HS, keys, values = nans(H, S, dtype=dtype), nans(1, G, C, S, dtype=dtype), nans(1, G, C, S, dtype=dtype)
    norms = {"query_norm": query_norm, "key_norm": key_norm}
    arguments = {**norms, "frequencies_R": frequencies_R, "scaling": 1.5, "interleaved": interleaved}
    kernels.rotate_and_store(qkv, scalar(position), q_HS, keys, values, **arguments)

    parts = qkv.split([H * S, G * S, G * S])
    shapes = [(1, heads * S) if over == "all" else (heads, S) for heads in (H, G)]
    query_HS = normed(parts[0].view(shapes[0]), query_norm).view(H, S)
    key_GS = normed(parts[1].view(shapes[1]), key_norm).view(G, S)
    turned = partial(rotated, position=position, frequencies_R=frequencies_R, scaling=1.5, interleaved=interleaved)
    assert_near(q_HS, turned(query_HS), dtype)
    assert_near(keys[0, :, position], turned(key_GS), dtype)
    assert torch.equal(values[0, :, position], parts[2].view(G, S))
    assert int(keys.isfinite().sum()) == int(values.isfinite().sum()) == G * S


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", [2, 3, 6])
def test_queries_grow_with_their_position(dtype: torch.dtype, position: int) -> None:
    """Keys do not grow."""
    H, G, S, C = 2, 1, 8, 7
    qkv, growth = randn((H + 2 * G) * S, dtype=dtype), QueryGrowth(rate=0.5, context=3)
    q_HS, keys, values = nans(H, S, dtype=dtype), nans(1, G, C, S, dtype=dtype), nans(1, G, C, S, dtype=dtype)
    kernels.rotate_and_store(qkv, scalar(position), q_HS, keys, values, growth=growth)

    assert_near(q_HS, qkv[: H * S].view(H, S).float() * growth.factor(position), dtype)
    assert torch.equal(keys[0, 0, position], qkv[H * S : (H + G) * S])


def test_nothing_is_stored_beyond_the_cache() -> None:
    """A step after the end of the context writes nothing."""
    keys, values = nans(1, 2, 4, 8), nans(1, 2, 4, 8)
    kernels.rotate_and_store(randn(64), scalar(4), nans(4, 8), keys, values)

    assert not keys.isfinite().any()
    assert not values.isfinite().any()


def attended(
    q_HS: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None, cap: float | None
) -> Tensor:
    """Attention in fp32, over the positions up to ``position`` that the window shows."""
    start = max(0, position + 1 - (window or position + 1))
    group = len(q_HS) // keys.shape[1]
    keys_HTS, values_HTS = [
        x[0, :, start : position + 1].float().repeat_interleave(group, dim=0) for x in (keys, values)
    ]
    scores_HT = 0.3 * torch.einsum("hs,hts->ht", q_HS.float(), keys_HTS)
    scores_HT = cap * (scores_HT / cap).tanh() if cap else scores_HT
    return torch.einsum("ht,hts->hs", scores_HT.softmax(dim=1), values_HTS)


def assert_attends(
    dtype: torch.dtype, H: int, G: int, S: int, position: int, window: int | None = None, cap: float | None = None
) -> None:
    context = 200
    q_HS, keys, values = (randn(*shape, dtype=dtype) for shape in ((H, S), (1, G, context, S), (1, G, context, S)))
    keys[:, :, position + 1 :], values[:, :, position + 1 :] = torch.nan, torch.nan
    scratch = nans(H, kernels.MOST_SPLITS, S), nans(2, H, kernels.MOST_SPLITS)
    out_HS = nans(H, S, dtype=dtype)
    options = {"bucket": context, "scale": 0.3, "window": window, "cap": cap}
    kernels.attend(q_HS, keys, values, scalar(position), *scratch, out_HS, **options)

    assert_near(out_HS, attended(q_HS, keys, values, position, window, cap), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "G"), [(2, 2), (6, 2), (4, 1)])
def test_attend(dtype: torch.dtype, H: int, G: int) -> None:
    """Over several splits, the last not full. Later positions of the cache are not read."""
    assert_attends(dtype, H, G, 20, 150)


@pytest.mark.parametrize("position", [0, 15, 16, 63, 64, 127, 128, 199])
@pytest.mark.parametrize("window", [None, 1, 50, 500])
def test_attend_at_the_edges_of_splits_and_windows(position: int, window: int | None) -> None:
    """Positions at which a block or a split begins or ends."""
    assert_attends(torch.float32, 2, 2, 8, position, window)
    assert_attends(torch.float32, 2, 1, 8, position, window)


def test_attend_caps_scores() -> None:
    """Scores are as large as the cap."""
    assert_attends(torch.float32, 2, 2, 64, 100, cap=2.0)
    assert_attends(torch.float32, 3, 1, 64, 100, window=90, cap=2.0)


F = 83


def kept_neurons(k: int) -> tuple[Tensor, Tensor, Tensor]:
    """k of F neurons, sorted: as int64; as int32, padded with invalid numbers; and k itself."""
    index_k = torch.randperm(F)[:k].sort().values.to(DEVICE)
    padded_F = torch.full((F,), 2**30, dtype=torch.int32, device=DEVICE)
    padded_F[:k] = index_k
    return index_k, padded_F, scalar(k, torch.int32)


def activated(x: Tensor, activation: str) -> Tensor:
    return {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
    }[activation](x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_expand(dtype: torch.dtype, activation: str, gated: bool) -> None:
    """Only the kept neurons, in their order, with their biases."""
    parts = 2 if gated else 1
    x_D, weight = randn(D, dtype=dtype), 0.1 * randn(parts * F, D, dtype=dtype)
    bias, norm = randn(parts * F, dtype=dtype), make_norm("rms", D, dtype)
    index_k, padded_F, kept = kept_neurons(21)
    z_F = torch.full((F,), 7.0, device=DEVICE)
    kernels.expand(x_D, weight, padded_F, kept, z_F, activation=activation, bias=bias, norm=norm)

    y = (weight.float() @ normed(x_D, norm) + bias.float()).view(parts, F)[:, index_k]
    expected_k = activated(y[0], activation) * (y[1] if gated else 1)
    assert_near(z_F[:21], expected_k, dtype)
    assert (z_F[21:] == 7).all()


@pytest.mark.parametrize("k", [1, 4, 50, F])
@pytest.mark.parametrize("kind", ["none", "layer"])
def test_expand_any_number_of_neurons(k: int, kind: str) -> None:
    """One neuron, a few, part of a tile, all."""
    x_D, weight, norm = randn(D), 0.1 * randn(2 * F, D), make_norm(kind, D, torch.float32)
    index_k, padded_F, kept = kept_neurons(k)
    z_F = nans(F)
    kernels.expand(x_D, weight, padded_F, kept, z_F, activation="silu", norm=norm)

    gate_F, up_F = (weight @ normed(x_D, norm)).view(2, F)
    assert_near(z_F[:k], (functional.silu(gate_F) * up_F)[index_k], torch.float32)
    assert z_F[k:].isnan().all()


def contracted(z_F: Tensor, padded_F: Tensor, kept: Tensor, contract_FD: Tensor, picks: Tensor | None = None) -> Tensor:
    partial_PD = nans(kernels.row_splits(*contract_FD.shape), contract_FD.shape[1])
    kernels.contract(z_F, padded_F, kept, contract_FD, partial_PD, picks)
    return partial_PD


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 16, 21, F])
def test_contract_is_the_masked_sum(dtype: torch.dtype, k: int) -> None:
    """The indexed rows give the full product with all other activations zero."""
    contract_FD, bias_D, residual_D = randn(F, D, dtype=dtype), randn(D, dtype=dtype), randn(D, dtype=dtype)
    index_k, padded_F, kept = kept_neurons(k)
    z_F = nans(F)
    z_F[:k] = randn(k)
    partial_PD = contracted(z_F, padded_F, kept, contract_FD)
    masked_F = torch.zeros(F, device=DEVICE).index_copy(0, index_k, z_F[:k])
    expected_D = masked_F @ contract_FD.float() + bias_D.float()
    out_D = nans(D, dtype=dtype)
    kernels.reduce_add(partial_PD, out_D, bias_D=bias_D)
    assert_near(out_D, expected_D, dtype)

    summed_D = residual_D.clone()
    kernels.reduce_add(partial_PD, summed_D, bias_D=bias_D, residual_MD=summed_D)
    assert_near(summed_D, expected_D + residual_D.float(), dtype)

    factored_D = residual_D.clone()
    kernels.reduce_add(partial_PD, factored_D, bias_D=bias_D, factor=0.3, residual_MD=factored_D)
    assert_near(factored_D, 0.3 * expected_D + residual_D.float(), dtype)


def test_contract_repeats_bit_by_bit() -> None:
    """The order of the sum is fixed."""
    contract_FD, z_F = randn(F, D), randn(F)
    _, padded_F, kept = kept_neurons(60)

    assert torch.equal(contracted(z_F, padded_F, kept, contract_FD)[:], contracted(z_F, padded_F, kept, contract_FD)[:])
