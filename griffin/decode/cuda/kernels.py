"""The Triton kernels of a decode step, for one token or several, each with its launcher.

A launcher writes into given tensors. It allocates no memory and reads no tensor on the host, so that a CUDA graph can
record it. The device reads everything that changes: tokens, position, neurons, and whether tokens pick by thresholds.
Sums are fp32 and in a fixed order. Values that the library holds in the model's dtype are rounded to that dtype here
too, except distances from means and from resting values.

Several tokens are successive tokens of a sequence. Each has the same tiles and sums as a single token, in the same
order. A program that reads weights multiplies each tile for a group of tokens at a time. It reads the tile again for
the next group, while the tile is still in a cache. Other work has separate programs for each token.

Shapes: M tokens of a pass, 1 in a step; D model width, N outputs of a projection, F feed-forward neurons, V vocabulary,
H query heads, G key and value heads, S head size, R rotated pairs of a head, C context length, P parts of a sum that
are reduced later. Dimension M may be missing if it is 1. Tiles: B before the letter; T tokens of a group.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, assignment, misc, var-annotated"

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin.model.weights import QueryGrowth

# Eight programs for each of an H200's 132 multiprocessors. About this many keep the memory busy.
PROGRAMS = 132 * 8
# The most elements of a weight that a program of four warps holds in registers, and the fewest for an own program.
LARGEST_TILE = 4096
SMALLEST_TILE = 1024
# The most programs over which the attention of a head is split, and the fewest positions of each.
MOST_SPLITS = 64
SMALLEST_SPLIT = 64
# Bytes of a tile of keys, and of one of values. Two of each in flight must fit the smallest target's 99 KiB.
KEY_TILE_BYTES = 16384
# The tile (rows, columns) of matrices whose rows are summed, and the most parts of such a sum.
ROWS_TILE = (16, 256)
MOST_PARTS = 64
REDUCE_COLUMNS = 32
# Tokens of a group, by tokens of a pass. Each token of a group needs as many registers as a whole step. With four
# tokens few programs run at a time. It only helps if tiles would otherwise be read again too often. Not measured yet.
GROUPED = {1: 1, 2: 2, 4: 2, 8: 4, 16: 4}


class Norm(Protocol):
    """The parts of a norm that a kernel needs; see ``griffin.model.weights.Norm``."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def eps(self) -> float: ...
    @property
    def centred(self) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Picking:
    """The tensors that the kernels of one layer need if tokens pick by thresholds. See ``griffin.thresholds``.

    picks: int32 ``(1,)``, not 0 if tokens pick. The other fields are used only then.
    gate_DF: the gate's matrix (without a gate, the first matrix), with a row for each input.
    means_D, input_limits_D, offsets_F, resting_F, output_limits_F: fp32.
    gate_limits_F: fp32; None without a gate.
    partial_MPF: scratch, fp32: sums over parts of the inputs. P is ``row_splits(D, F)``.
    reads: int64 ``(4,)``. Each token adds its inputs, its neurons after stage 2, those after stage 3, and 1.
    count: int32 ``(1,)``: the number of first tokens of a pass that are counted; None counts all.
    """

    picks: Tensor
    gate_DF: Tensor
    means_D: Tensor
    input_limits_D: Tensor
    offsets_F: Tensor
    gate_limits_F: Tensor | None
    resting_F: Tensor
    output_limits_F: Tensor
    partial_MPF: Tensor
    reads: Tensor
    count: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Memory for one layer's intermediate values in a pass, in the model's dtype.

    gate_MF: the input of the activation function.
    up_MF: the factor on that function's value; None in a block without a gate.
    """

    gate_MF: Tensor
    up_MF: Tensor | None


def weight_tile(rows: int, columns: int, largest: int = LARGEST_TILE) -> tuple[int, int]:
    """Rows and columns (powers of two) of a weight that one program multiplies at a time."""
    height = min(8, _power_of_two_below(max(1, rows // PROGRAMS)))
    width = column_tile(columns, largest // height)
    while height * width < SMALLEST_TILE and height < rows:
        height *= 2
    return height, width


def column_tile(columns: int, largest: int) -> int:
    """The power of two that covers ``columns`` with the least left over. If several do, the largest one."""
    sizes = [256]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    best = min(reversed(sizes), key=lambda size: triton.cdiv(columns, size) * size)
    return int(min(best, triton.next_power_of_2(columns)))


def split_size(length: int) -> int:
    """The number of positions, out of ``length``, that one program of the attention reads."""
    return SMALLEST_SPLIT * int(triton.cdiv(length, SMALLEST_SPLIT * MOST_SPLITS))


def row_splits(rows: int, columns: int) -> int:
    """Number of parts into which a sum over a matrix's rows is split."""
    height, width = ROWS_TILE
    columns_of_programs = int(triton.cdiv(columns, width))
    return max(1, min(MOST_PARTS, PROGRAMS // columns_of_programs, int(triton.cdiv(rows, height))))


def embed(
    ids_M: Tensor, position: Tensor, embedding_VD: Tensor, scale: float, positions_CD: Tensor | None, x_MD: Tensor
) -> None:
    """x = a token's embedding times ``scale``, plus its position's embedding if positions are learned.

    ids_M: int64. position: int64 ``(1,)``, of the first token. scale: already rounded to the model's dtype.
    """
    D, C = embedding_VD.shape[1], 0 if positions_CD is None else len(positions_CD)
    block = min(1024, triton.next_power_of_2(D))
    _embed[(triton.cdiv(D, block), len(ids_M))](ids_M, position, embedding_VD, scale, positions_CD, x_MD, D, C, block)


def project(
    x_MD: Tensor,
    weight_ND: Tensor,
    out_MN: Tensor,
    *,
    bias_N: Tensor | None = None,
    norm: Norm | None = None,
    factor: float | None = None,
    residual_MN: Tensor | None = None,
    cap: float | None = None,
    normed_MD: Tensor | None = None,
) -> None:
    """out = [residual +] cap tanh(factor (W norm(x) + bias) / cap), without parts that are None. out may be residual.

    normed_MD: scratch in the model's dtype, for a norm of several tokens.
    """
    N, D = weight_ND.shape
    BN, BD = weight_tile(N, D)
    x_MD, norm = _normed_before(x_MD, norm, normed_MD, D, BD)
    _project[(triton.cdiv(N, BN),)](
        x_MD, weight_ND, bias_N, factor, residual_MN, out_MN, cap, *_norm_arguments(norm, x_MD.dtype),
        *_groups(x_MD, D), N, D, BN, BD,
    )  # fmt: skip


def normalise_add(x_MD: Tensor, y_MD: Tensor, norm: Norm, factor: float | None = None) -> None:
    """x += factor norm(y)."""
    D = x_MD.shape[-1]
    block = triton.next_power_of_2(D)
    warps = max(1, min(16, block // 256))
    _normalise_add[(_tokens(x_MD, D),)](
        x_MD, y_MD, factor, *_norm_arguments(norm, x_MD.dtype), D, block, num_warps=warps
    )


def rotate_and_store(
    qkv: Tensor,
    position: Tensor,
    q_MHS: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    query_norm: Norm | None = None,
    key_norm: Norm | None = None,
    frequencies_R: Tensor | None = None,
    scaling: float = 1.0,
    interleaved: bool = False,
    growth: QueryGrowth | None = None,
) -> None:
    """Norm and rotate queries into ``q_MHS`` and keys into the cache. Copy values into the cache.

    qkv: ``(M, (H + 2 G) S)``. position: of the first token. keys, values: ``(1, G, C, S)``; positions from C on are
    not written.
    interleaved: pair i is elements 2i and 2i + 1 of a head; otherwise elements i and i + R.
    growth: how queries grow with their position.
    """
    H, S = q_MHS.shape[-2:]
    G, C = keys.shape[1:3]
    R = 0 if frequencies_R is None else len(frequencies_R)
    query_weight, query_bias, query_eps, centred, round_twice = _norm_arguments(query_norm, qkv.dtype)
    key_weight, key_bias, key_eps, *_ = _norm_arguments(key_norm, qkv.dtype)
    block = triton.next_power_of_2(S)
    warps = 4 if max(_length(query_weight), _length(key_weight)) > S else max(1, block // 64)
    _rotate_and_store[(H + 2 * G, _tokens(q_MHS, H * S))](
        qkv, position, q_MHS, keys, values,
        query_weight, query_bias, query_eps, _length(query_weight),
        key_weight, key_bias, key_eps, _length(key_weight),
        frequencies_R, scaling, growth and growth.rate, growth and growth.context,
        H, G, S, C, R, interleaved, centred, round_twice, block,
        num_warps=warps,
    )  # fmt: skip


def attend(
    q_MHS: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    partial_MHPS: Tensor,
    extremes_M2HP: Tensor,
    out_MHS: Tensor,
    *,
    bucket: int,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
) -> None:
    """Attention of each token to itself and all earlier ones. The first token is at ``position``, all below ``bucket``.

    window: the number of latest positions to attend to. cap: scores become c tanh(score / c).
    partial_MHPS, extremes_M2HP: fp32 scratch, with P at least ``MOST_SPLITS``.
    """
    H, S = q_MHS.shape[-2:]
    G, C = keys.shape[1:3]
    group, block_S = H // G, max(16, triton.next_power_of_2(S))
    # One query head needs no tensor cores. For several heads, a tile of tensor cores has at least 16 rows.
    block_group = 1 if group == 1 else max(16, triton.next_power_of_2(group))
    block_C = max(16, min(SMALLEST_SPLIT, KEY_TILE_BYTES // (block_S * keys.element_size())))
    longest = min(bucket, C, window or bucket)
    size = split_size(longest)
    splits = triton.cdiv(longest, size)
    P, M = partial_MHPS.shape[-2], _tokens(q_MHS, H * S)
    # The interpreter multiplies with numpy, which has no bf16.
    widen = triton.knobs.runtime.interpret
    # Tokens come first, because programs that run side by side then read the same keys.
    _attend[(M, G, splits)](
        q_MHS, keys, values, position, partial_MHPS, extremes_M2HP, scale, cap, window,
        H, S, C, P, size, group, block_group, block_S, block_C, widen,
        num_stages=2,
    )  # fmt: skip
    _combine[(H, M)](
        partial_MHPS, extremes_M2HP, position, out_MHS, window,
        H, S, C, P, size, triton.next_power_of_2(splits), block_S,
        num_warps=8,
    )  # fmt: skip


def sum_inputs(x_MD: Tensor, picking: Picking, *, norm: Norm | None = None) -> None:
    """Stage 1, if tokens pick: partial sums over the inputs that are read, into ``partial_MPF``, for ``expand``.

    The sums are over rows of the gate's matrix, times the distances of the normed inputs from their means.
    """
    D, F = picking.gate_DF.shape
    rows, columns = ROWS_TILE
    columns = min(columns, triton.next_power_of_2(F))
    P = picking.partial_MPF.shape[-2]
    _sum_inputs[(triton.cdiv(F, columns), P)](
        x_MD, picking.picks, picking.gate_DF, picking.means_D, picking.input_limits_D, picking.partial_MPF,
        picking.reads, picking.count, *_norm_arguments(norm, x_MD.dtype),
        *_groups(x_MD, D), D, F, P, rows, columns, column_tile(D, LARGEST_TILE),
    )  # fmt: skip


def expand(
    x_MD: Tensor,
    weight: Tensor,
    index_F: Tensor,
    kept: Tensor,
    z_MF: Tensor,
    *,
    activation: str,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    picking: Picking | None = None,
    normed_MD: Tensor | None = None,
    observed: Observed | None = None,
) -> None:
    """z_j = activation(gate) up of neuron ``index_j``, or activation(up) of plain blocks, for j < ``kept``.

    weight: ``(2 F, D)``, the gates first, or ``(F, D)``. bias has the same order. index_F: int32, kept: int32 ``(1,)``.
    z_MF: fp32, values rounded to the model's dtype.
    picking: if tokens pick, the gates come from ``sum_inputs``, and rows of up are read for neurons that pass stage 2.
        Then z_j is the distance of neuron j from its resting value, or 0 if it is too small. All neurons must be kept,
        in their order.
    normed_MD: see ``project``.
    """
    F, D = z_MF.shape[-1], weight.shape[1]
    gated = len(weight) == 2 * F
    # The tiles of gate and up share the registers. The tile's size is best for half of the neurons.
    BF, BD = weight_tile(F // 2, D, LARGEST_TILE // 2 if gated else LARGEST_TILE)
    x_MD, norm = _normed_before(x_MD, norm, normed_MD, D, BD)
    gate_MF, up_MF = (None, None) if observed is None else (observed.gate_MF, observed.up_MF)
    _expand[(triton.cdiv(F, BF),)](
        x_MD, weight, bias, index_F, kept, z_MF, gate_MF, up_MF, picking and picking.count,
        *_picking_arguments(picking),
        *_norm_arguments(norm, x_MD.dtype), *_groups(x_MD, D), F, D, gated, activation, BF, BD,
    )  # fmt: skip


def contract(
    z_MF: Tensor,
    index_F: Tensor,
    kept: Tensor,
    contract_FD: Tensor,
    partial_MPD: Tensor,
    picks: Tensor | None = None,
) -> None:
    """Partial sums over j < ``kept`` of z_j times row ``index_j``: fp32 ``(M, P, D)``, for ``reduce_add``.

    picks: int32 ``(1,)``. If it is not 0, many z are 0. A row is then not read if its z is 0 for all tokens of a group.
    """
    P, D = partial_MPD.shape[-2:]
    F = z_MF.shape[-1]
    rows, columns = ROWS_TILE
    columns = min(columns, triton.next_power_of_2(D))
    _contract[(triton.cdiv(D, columns), P)](
        z_MF, index_F, kept, contract_FD, partial_MPD, picks, *_groups(z_MF, F), F, D, P, rows, columns
    )


def reduce_add(
    partial_MPD: Tensor,
    out_MD: Tensor,
    *,
    bias_D: Tensor | None = None,
    factor: float | None = None,
    residual_MD: Tensor | None = None,
) -> None:
    """out = [residual +] factor (the sum of the parts + bias), without parts that are None. out may be the residual."""
    P, D = partial_MPD.shape[-2:]
    columns = min(REDUCE_COLUMNS, triton.next_power_of_2(D))
    _reduce_add[(triton.cdiv(D, columns), _tokens(out_MD, D))](
        partial_MPD, bias_D, factor, residual_MD, out_MD, D, P, triton.next_power_of_2(P), columns
    )


def _tokens(values: Tensor, size: int) -> int:
    return values.numel() // size


def _groups(values: Tensor, size: int) -> tuple[int, int]:
    """The number of groups of tokens, and the number of tokens in each."""
    tokens = _tokens(values, size)
    return tokens // GROUPED[tokens], GROUPED[tokens]


def _normed_before(
    x_MD: Tensor, norm: Norm | None, normed_MD: Tensor | None, D: int, BD: int
) -> tuple[Tensor, Norm | None]:
    """Norm several tokens once, instead of in each program. The tile is the program's, so that sums are the same."""
    if norm is None or _tokens(x_MD, D) == 1:
        return x_MD, norm
    assert normed_MD is not None
    _normalise[(_tokens(x_MD, D),)](x_MD, normed_MD, *_norm_arguments(norm, x_MD.dtype), D, BD)
    return normed_MD, None


def _norm_arguments(norm: Norm | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, float, bool, bool]:
    """Weight, bias, eps, whether centred, and whether also rounded before the weight, as most RMS norms are."""
    if norm is None:
        return None, None, 0.0, False, False
    return norm.weight, norm.bias, norm.eps, norm.centred, not norm.centred and norm.weight.dtype == dtype


def _picking_arguments(picking: Picking | None) -> tuple[Tensor | int | None, ...]:
    """The arguments of ``_expand`` for picking: tensors, the number of parts, and the power of two that covers it."""
    if picking is None:
        return None, None, None, None, None, None, None, 1, 1
    P = picking.partial_MPF.shape[-2]
    return (
        picking.picks,
        picking.partial_MPF,
        picking.offsets_F,
        picking.gate_limits_F,
        picking.resting_F,
        picking.output_limits_F,
        picking.reads,
        P,
        triton.next_power_of_2(P),
    )


def _length(weight: Tensor | None) -> int:
    return 0 if weight is None else len(weight)


def _power_of_two_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    return x.to(dtype).to(tl.float32)


@triton.jit
def _tanh(x):
    # This form does not overflow for any x.
    decay = tl.exp(-2 * tl.abs(x))
    magnitude = (1 - decay) / (1 + decay)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.maximum(x, 0.0)
    return y


@triton.jit
def _statistics(x_D, eps, D: tl.constexpr, CENTRED: tl.constexpr, BD: tl.constexpr):
    """The mean (0 if not centred), and the reciprocal root of the mean square about it."""
    total = tl.zeros((BD,), tl.float32)
    if CENTRED:
        for start in range(0, D, BD):
            columns = start + tl.arange(0, BD)
            total += tl.load(x_D + columns, mask=columns < D, other=0.0, eviction_policy="evict_last").to(tl.float32)
    mean = tl.sum(total, 0) / D
    squares = tl.zeros((BD,), tl.float32)
    for start in range(0, D, BD):
        columns = start + tl.arange(0, BD)
        x = tl.load(x_D + columns, mask=columns < D, other=0.0, eviction_policy="evict_last").to(tl.float32)
        deviation = tl.where(columns < D, x - mean, 0.0)
        squares += deviation * deviation
    return mean, tl.rsqrt(tl.sum(squares, 0) / D + eps)


@triton.jit
def _normed(
    x, columns, inside, mean, inverse, weight_D, bias_D, dtype: tl.constexpr, ROUND_TWICE: tl.constexpr
):  # fmt: skip
    """x (fp32) at these columns, normed and rounded to dtype. Columns outside give 0."""
    y = (x - mean) * inverse
    if ROUND_TWICE:
        y = _rounded(y, dtype)
    y *= tl.load(weight_D + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if bias_D is not None:
        y += tl.load(bias_D + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    return _rounded(y, dtype)


@triton.jit
def _statistics_for(norm_weight_D, x_D, eps, D: tl.constexpr, CENTRED: tl.constexpr, BD: tl.constexpr):
    """The statistics for ``_entering``. Without a norm they are not computed."""
    mean, inverse = 0.0, 0.0
    if norm_weight_D is not None:
        mean, inverse = _statistics(x_D, eps, D, CENTRED, BD)
    return mean, inverse


@triton.jit
def _entering(
    x_D, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype: tl.constexpr, ROUND_TWICE: tl.constexpr
):  # fmt: skip
    """x at these columns in fp32, normed if there is a norm."""
    x = tl.load(x_D + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if norm_weight_D is not None:
        x = _normed(x, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
    return x


@triton.jit
def _embed(
    ids_M, position, embedding_VD, scale, positions_CD, x_MD, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    dtype = x_MD.dtype.element_ty
    token = tl.program_id(1)
    columns = tl.program_id(0) * BD + tl.arange(0, BD)
    inside = columns < D
    row = tl.load(ids_M + token).to(tl.int64) * D
    x = tl.load(embedding_VD + row + columns, mask=inside).to(tl.float32) * scale
    if positions_CD is not None:
        # A pass may have more tokens than are wanted.
        row = tl.minimum(tl.load(position) + token, C - 1).to(tl.int64) * D
        x = _rounded(x, dtype) + tl.load(positions_CD + row + columns, mask=inside).to(tl.float32)
    tl.store(x_MD + token * D + columns, x.to(dtype), mask=inside)


@triton.jit
def _normalise(
    x_MD, normed_MD, norm_weight_D, norm_bias_D, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = normed_MD.dtype.element_ty
    x_D = x_MD + tl.program_id(0) * D
    mean, inverse = _statistics(x_D, eps, D, CENTRED, BD)
    for start in range(0, D, BD):
        columns = start + tl.arange(0, BD)
        inside = columns < D
        x = _entering(x_D, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
        tl.store(normed_MD + tl.program_id(0) * D + columns, x.to(dtype), mask=inside)


@triton.jit
def _zeros(T: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Zeros for the sums of each token of a group."""
    zeros = ()
    for _ in tl.static_range(T):
        zeros += (tl.zeros((BR, BC), tl.float32),)
    return zeros


@triton.jit
def _store_projected(y, rows, bias_N, factor, residual_N, out_N, cap, N: tl.constexpr):
    dtype = out_N.dtype.element_ty
    if bias_N is not None:
        y += tl.load(bias_N + rows, mask=rows < N, other=0.0).to(tl.float32)
    y = _rounded(y, dtype)
    if factor is not None:
        y = _rounded(y * factor, dtype)
    if cap is not None:
        y = cap * _tanh(y / cap)
    if residual_N is not None:
        y += tl.load(residual_N + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_N + rows, y.to(dtype), mask=rows < N)


@triton.jit
def _project(
    x_MD, weight_ND, bias_N, factor, residual_MN, out_MN, cap,
    norm_weight_D, norm_bias_D, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    groups, T: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    dtype = out_MN.dtype.element_ty
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    offsets = rows.to(tl.int64) * D
    for group in range(groups):
        x_TD = x_MD + group * T * D
        # Of a single token, see _normed_before.
        mean, inverse = _statistics_for(norm_weight_D, x_TD, eps, D, CENTRED, BD)
        products = _zeros(T, BN, BD)
        for start in range(0, D, BD):
            columns = start + tl.arange(0, BD)
            inside = columns < D
            tile = (rows < N)[:, None] & inside[None, :]
            pointers = weight_ND + offsets[:, None] + columns[None, :]
            w = tl.load(pointers, mask=tile, other=0.0, eviction_policy="evict_first")
            added = ()
            for token in tl.static_range(T):
                x_D = x_TD + token * D
                x = _entering(x_D, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
                added += (products[token] + w.to(tl.float32) * x[None, :],)
            products = added
        for token in tl.static_range(T):
            first = (group * T + token) * N
            residual_N = None if residual_MN is None else residual_MN + first
            y = tl.sum(products[token], 1)
            _store_projected(y, rows, bias_N, factor, residual_N, out_MN + first, cap, N)


@triton.jit
def _normalise_add(
    x_MD, y_MD, factor,
    norm_weight_D, norm_bias_D, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    dtype = x_MD.dtype.element_ty
    x_D, y_D = x_MD + tl.program_id(0) * D, y_MD + tl.program_id(0) * D
    mean, inverse = _statistics(y_D, eps, D, CENTRED, BD)
    columns = tl.arange(0, BD)
    inside = columns < D
    y = tl.load(y_D + columns, mask=inside, other=0.0).to(tl.float32)
    y = _normed(y, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
    if factor is not None:
        y = _rounded(y * factor, dtype)
    x = tl.load(x_D + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(x_D + columns, (x + y).to(dtype), mask=inside)


@triton.jit
def _rotated(
    heads, head, angle_of, norm_weight, norm_bias, eps, NORMED: tl.constexpr,
    frequencies_R, scaling,
    S: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr,
    CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """One head of the vector ``heads``, fp32 rounded to its dtype. NORMED: the elements of one norm; 0 if none."""
    dtype = heads.dtype.element_ty
    columns = tl.arange(0, BS)
    inside = columns < S
    head_S = heads + head * S
    x = tl.load(head_S + columns, mask=inside, other=0.0).to(tl.float32)
    # For each element: its pair, whether it is the first of the pair, and the place of the other one.
    if INTERLEAVED:
        pairs = columns // 2
        first_of_pair = columns % 2 == 0
        partners = tl.where(first_of_pair, columns + 1, columns - 1)
    else:
        pairs = tl.where(columns < R, columns, columns - R)
        first_of_pair = columns < R
        partners = tl.where(first_of_pair, columns + R, columns - R)
    partners = tl.where(columns < 2 * R, partners, columns)
    y = tl.load(head_S + partners, mask=inside, other=0.0).to(tl.float32)
    if NORMED == S:
        mean, inverse = _statistics(head_S, eps, S, CENTRED, BS)
        x = _normed(x, columns, inside, mean, inverse, norm_weight, norm_bias, dtype, ROUND_TWICE)
        y = _normed(y, partners, inside, mean, inverse, norm_weight, norm_bias, dtype, ROUND_TWICE)
    elif NORMED > 0:
        mean, inverse = _statistics(heads, eps, NORMED, CENTRED, 1024)
        first = head * S
        x = _normed(x, first + columns, inside, mean, inverse, norm_weight, norm_bias, dtype, ROUND_TWICE)
        y = _normed(y, first + partners, inside, mean, inverse, norm_weight, norm_bias, dtype, ROUND_TWICE)
    if R > 0:
        angles = angle_of * tl.load(frequencies_R + pairs, mask=columns < 2 * R, other=0.0)
        cosines = _rounded(tl.cos(angles) * scaling, dtype)
        sines = _rounded(tl.sin(angles) * scaling, dtype)
        turned = _rounded(tl.where(first_of_pair, -y, y) * sines, dtype)
        x = tl.where(columns < 2 * R, _rounded(x * cosines, dtype) + turned, x)
    return x.to(dtype)


@triton.jit
def _rotate_and_store(
    qkv, position, q_MHS, keys, values,
    query_weight, query_bias, query_eps, QUERY_NORMED: tl.constexpr,
    key_weight, key_bias, key_eps, KEY_NORMED: tl.constexpr,
    frequencies_R, scaling, growth_rate, growth_context,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, C: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr,
    CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    head, token = tl.program_id(0), tl.program_id(1)
    qkv += token * (H + 2 * G) * S
    columns = tl.arange(0, BS)
    inside = columns < S
    here = tl.load(position) + token
    angle_of = here.to(tl.float32)
    if head < H:
        q = _rotated(
            qkv, head, angle_of, query_weight, query_bias, query_eps, QUERY_NORMED,
            frequencies_R, scaling, S, R, INTERLEAVED, CENTRED, ROUND_TWICE, BS,
        )  # fmt: skip
        if growth_rate is not None:
            contexts = (here // growth_context).to(tl.float32)
            growth = _rounded(1 + growth_rate * tl.log(1 + contexts), q.dtype)
            q = (q.to(tl.float32) * growth).to(q.dtype)
        tl.store(q_MHS + (token * H + head) * S + columns, q, mask=inside)
    elif head < H + G:
        k = _rotated(
            qkv + H * S, head - H, angle_of, key_weight, key_bias, key_eps, KEY_NORMED,
            frequencies_R, scaling, S, R, INTERLEAVED, CENTRED, ROUND_TWICE, BS,
        )  # fmt: skip
        row = ((head - H).to(tl.int64) * C + here) * S
        tl.store(keys + row + columns, k, mask=inside & (here < C))
    else:
        v = tl.load(qkv + head * S + columns, mask=inside)
        row = ((head - H - G).to(tl.int64) * C + here) * S
        tl.store(values + row + columns, v, mask=inside & (here < C))


@triton.jit
def _attended(position, token, window, C: tl.constexpr):
    """The first position to attend to, and the position after the last."""
    stop = tl.minimum(tl.load(position) + token + 1, C).to(tl.int32)
    start = stop * 0
    if window is not None:
        start = tl.maximum(stop - window, 0)
    return start, stop


@triton.jit
def _attend(
    q_MHS, keys, values, position, partial_MHPS, extremes_M2HP, scale, cap, window,
    H: tl.constexpr, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr, SIZE: tl.constexpr,
    GROUP: tl.constexpr, BH: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Attend to one split of a key head, for all query heads that share it. Sums are relative to its maximum score."""
    token, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    q_HS, extremes_2HP = q_MHS + token * H * S, extremes_M2HP + token * 2 * H * P
    partial_HPS = partial_MHPS + token * H * P * S
    first, stop = _attended(position, token, window, C)
    first += split * SIZE
    if first >= stop:
        return
    stop = tl.minimum(stop, first + SIZE)

    columns = tl.arange(0, BS)
    rows = tl.arange(0, BH)
    heads = group * GROUP + rows
    tile = (rows < GROUP)[:, None] & (columns < S)[None, :]
    q = tl.load(q_HS + heads[:, None] * S + columns[None, :], mask=tile, other=0.0)
    base = group.to(tl.int64) * C * S
    maxima = tl.full((BH,), float("-inf"), tl.float32)
    totals = tl.zeros((BH,), tl.float32)
    sums = tl.zeros((BH, BS), tl.float32)
    for begin in range(first, stop, BC):
        seen = begin + tl.arange(0, BC)
        filled = (seen < stop)[:, None] & (columns < S)[None, :]
        offsets = base + seen[:, None] * S + columns[None, :]
        k = tl.load(keys + offsets, mask=filled, other=0.0)
        v = tl.load(values + offsets, mask=filled, other=0.0)
        if BH == 1:
            scores = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[None, :]
        elif WIDEN:
            scores = tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), input_precision="ieee")
        else:
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores *= scale
        if cap is not None:
            scores = cap * _tanh(scores / cap)
        scores = tl.where((seen < stop)[None, :], scores, float("-inf"))
        larger = tl.maximum(maxima, tl.max(scores, 1))
        decay = tl.exp(maxima - larger)
        p = tl.exp(scores - larger[:, None])
        totals = totals * decay + tl.sum(p, 1)
        if BH == 1:
            added = tl.sum(tl.sum(p, 0)[:, None] * v.to(tl.float32), 0)[None, :]
        elif WIDEN:
            added = tl.dot(_rounded(p, v.dtype), v.to(tl.float32), input_precision="ieee")
        else:
            added = tl.dot(p.to(v.dtype), v, input_precision="ieee")
        sums = sums * decay[:, None] + added
        maxima = larger

    parts = heads * P + split
    tl.store(extremes_2HP + parts, maxima, mask=rows < GROUP)
    tl.store(extremes_2HP + H * P + parts, totals, mask=rows < GROUP)
    tl.store(partial_HPS + parts[:, None] * S + columns[None, :], sums, mask=tile)


@triton.jit
def _combine(
    partial_MHPS, extremes_M2HP, position, out_MHS, window,
    H: tl.constexpr, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr, SIZE: tl.constexpr,
    BP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """For one query head, bring all splits with positions to one maximum and add them."""
    head, token = tl.program_id(0), tl.program_id(1)
    partial_HPS, extremes_2HP = partial_MHPS + token * H * P * S, extremes_M2HP + token * 2 * H * P
    start, stop = _attended(position, token, window, C)
    splits = tl.arange(0, BP)
    columns = tl.arange(0, BS)
    used = start + splits * SIZE < stop
    parts = head * P + splits
    maxima = tl.load(extremes_2HP + parts, mask=used, other=float("-inf"))
    totals = tl.load(extremes_2HP + H * P + parts, mask=used, other=0.0)
    shares = tl.exp(maxima - tl.max(maxima, 0))
    tile = used[:, None] & (columns < S)[None, :]
    sums = tl.load(partial_HPS + parts[:, None] * S + columns[None, :], mask=tile, other=0.0)
    out = tl.sum(sums * shares[:, None], 0) / tl.sum(totals * shares, 0)
    tl.store(out_MHS + (token * H + head) * S + columns, out.to(out_MHS.dtype.element_ty), mask=columns < S)


@triton.jit
def _sum_inputs(
    x_MD, picks, gate_DF, means_D, limits_D, partial_MPF, reads, count,
    norm_weight_D, norm_bias_D, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    groups, T: tl.constexpr,
    D: tl.constexpr, F: tl.constexpr, P: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    if tl.load(picks) == 0:
        return

    dtype: tl.constexpr = x_MD.dtype.element_ty
    share = tl.cdiv(tl.cdiv(D, P), BR) * BR
    part = tl.program_id(1)
    stop = tl.minimum(D, (part + 1) * share)
    columns = tl.program_id(0) * BC + tl.arange(0, BC)
    for group in range(groups):
        x_TD = x_MD + group * T * D
        statistics = ()
        for token in tl.static_range(T):
            statistics += (_statistics_for(norm_weight_D, x_TD + token * D, eps, D, CENTRED, BD),)
        products = _zeros(T, BR, BC)
        counts = ()
        for _ in tl.static_range(T):
            counts += (tl.zeros((BR,), tl.int32),)
        for start in range(part * share, stop, BR):
            inputs = start + tl.arange(0, BR)
            inside = inputs < stop
            means = tl.load(means_D + inputs, mask=inside, other=0.0)
            limits = tl.load(limits_D + inputs, mask=inside, other=0.0)
            distances, more = (), ()
            needed = inputs < 0
            for token in tl.static_range(T):
                mean, inverse = statistics[token]
                x_D = x_TD + token * D
                x = _entering(x_D, inputs, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
                far = x - means
                read = inside & (tl.abs(far) > limits)
                needed = needed | read
                distances += (tl.where(read, far, 0.0),)
                more += (counts[token] + read.to(tl.int32),)
            counts = more
            tile = needed[:, None] & (columns < F)[None, :]
            pointers = gate_DF + inputs.to(tl.int64)[:, None] * F + columns[None, :]
            w = tl.load(pointers, mask=tile, other=0.0, eviction_policy="evict_first")
            added = ()
            for token in tl.static_range(T):
                added += (products[token] + w.to(tl.float32) * distances[token][:, None],)
            products = added
        for token in tl.static_range(T):
            number = group * T + token
            partial_F = partial_MPF + (number * P + part) * F
            tl.store(partial_F + columns, tl.sum(products[token], 0), mask=columns < F)
            if tl.program_id(0) == 0 and _counted(number, count):
                tl.atomic_add(reads, tl.sum(counts[token], 0).to(tl.int64))
                if part == 0:
                    tl.atomic_add(reads + 3, tl.full((), 1, tl.int64))


@triton.jit
def _counted(token, count):
    """Whether a token is one of the first ``count`` tokens; all are if that is None."""
    counted = token >= 0
    if count is not None:
        counted = token < tl.load(count)
    return counted


@triton.jit
def _gates(partial_PF, offsets_F, slots, present, F: tl.constexpr, P: tl.constexpr, BP: tl.constexpr):
    """The gates before their activation function, from the sums of stage 1."""
    parts = tl.arange(0, BP)
    tile = (parts < P)[:, None] & present[None, :]
    y = tl.sum(tl.load(partial_PF + parts[:, None] * F + slots[None, :], mask=tile, other=0.0), 0)
    return y + tl.load(offsets_F + slots, mask=present, other=0.0)


@triton.jit
def _acting(y, gate_limits_F, slots, present, dtype: tl.constexpr, ACTIVATION: tl.constexpr):
    """Stage 2: the neurons whose gates exceed their limits."""
    given = tl.abs(_rounded(_activated(_rounded(y, dtype), ACTIVATION), dtype))
    return present & (given > tl.load(gate_limits_F + slots, mask=present, other=0.0))


@triton.jit
def _distances(z, resting_F, output_limits_F, slots, present, acts, reads, counted=None):
    """Stage 3: the distances of z from resting values, or 0 if too small. Counts the neurons of stages 2 and 3."""
    z -= tl.load(resting_F + slots, mask=present, other=0.0)
    gives = acts & (tl.abs(z) > tl.load(output_limits_F + slots, mask=present, other=0.0))
    acting, giving = tl.sum(acts.to(tl.int64), 0), tl.sum(gives.to(tl.int64), 0)
    counts = acting > 0
    if counted is not None:
        counts = counts & counted
    if counts:
        tl.atomic_add(reads + 1, acting)
        tl.atomic_add(reads + 2, giving)
    return tl.where(gives, z, 0.0)


@triton.jit
def _expand(
    x_MD, weight, bias, index_F, kept, z_MF, gate_MF, up_MF, count,
    picks, partial_MPF, offsets_F, gate_limits_F, resting_F, output_limits_F, reads,
    P: tl.constexpr, BP: tl.constexpr,
    norm_weight_D, norm_bias_D, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    groups, T: tl.constexpr, F: tl.constexpr, D: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
    BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    k = tl.load(kept)
    first = tl.program_id(0) * BF
    if first >= k:
        return

    dtype = x_MD.dtype.element_ty
    slots = first + tl.arange(0, BF)
    present = slots < k
    neurons = tl.load(index_F + slots, mask=present, other=0).to(tl.int64)
    offsets = neurons[:, None] * D
    # The neurons whose rows of the first matrix are read.
    expands = present
    if picks is not None:
        picking = tl.load(picks) != 0
        expands = present & (picking == 0)
    for group in range(groups):
        x_TD = x_MD + group * T * D
        # Of a single token, see _normed_before.
        mean, inverse = _statistics_for(norm_weight_D, x_TD, eps, D, CENTRED, BD)
        # For each token: the parts of its gates that are known already, and the neurons whose rows of up it reads.
        gates, acts = (), ()
        needed = expands
        acting = slots < 0
        for token in tl.static_range(T):
            y = tl.zeros((BF,), tl.float32)
            act = present
            if picks is not None:  # noqa: SIM102 - the first is known when compiling, the second is not
                if picking:
                    partial_PF = partial_MPF + (group * T + token) * P * F
                    y = _gates(partial_PF, offsets_F, slots, present, F, P, BP)
                    if GATED:
                        act = _acting(y, gate_limits_F, slots, present, dtype, ACTIVATION)
            gates += (y,)
            acts += (act,)
            if GATED:
                needed = needed | act
                acting = acting | act
        products, up_products = _zeros(T, BF, BD), _zeros(T, BF, BD)
        if tl.max(needed.to(tl.int32), 0) > 0:
            for start in range(0, D, BD):
                columns = start + tl.arange(0, BD)
                inside = columns < D
                pointers = weight + offsets + columns[None, :]
                tile = expands[:, None] & inside[None, :]
                w = tl.load(pointers, mask=tile, other=0.0, eviction_policy="evict_first")
                if GATED:
                    # The rows of up are F rows after those of the gate.
                    tile = acting[:, None] & inside[None, :]
                    up = tl.load(pointers + F * D, mask=tile, other=0.0, eviction_policy="evict_first")
                added, up_added = (), ()
                for token in tl.static_range(T):
                    x_D = x_TD + token * D
                    x = _entering(x_D, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
                    added += (products[token] + w.to(tl.float32) * x[None, :],)
                    if GATED:
                        up_added += (up_products[token] + up.to(tl.float32) * x[None, :],)
                products = added
                if GATED:
                    up_products = up_added
        for token in tl.static_range(T):
            number = group * T + token
            y = gates[token] + tl.sum(products[token], 1)
            if bias is not None:
                # If tokens pick, the offsets contain the bias.
                y += tl.load(bias + neurons, mask=expands, other=0.0).to(tl.float32)
            if gate_MF is not None:
                tl.store(gate_MF + number * F + slots, y.to(dtype), mask=present)
            z = _rounded(_activated(_rounded(y, dtype), ACTIVATION), dtype)
            if GATED:
                y = tl.sum(up_products[token], 1)
                if bias is not None:
                    y += tl.load(bias + F + neurons, mask=present, other=0.0).to(tl.float32)
                if up_MF is not None:
                    tl.store(up_MF + number * F + slots, y.to(dtype), mask=present)
                z = _rounded(z * _rounded(y, dtype), dtype)
            if picks is not None:  # noqa: SIM102 - the first is known when compiling, the second is not
                if picking:
                    counted = _counted(number, count)
                    z = _distances(z, resting_F, output_limits_F, slots, present, acts[token], reads, counted)
            tl.store(z_MF + number * F + slots, z, mask=present)


@triton.jit
def _contract(
    z_MF, index_F, kept, contract_FD, partial_MPD, picks, groups, T: tl.constexpr,
    F: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    k = tl.load(kept)
    # The k neurons are shared by all parts. A part without neurons writes zeros.
    share = tl.cdiv(tl.cdiv(k, P), BF) * BF
    part = tl.program_id(1)
    columns = tl.program_id(0) * BD + tl.arange(0, BD)
    stop = tl.minimum(k, (part + 1) * share)
    if picks is not None:
        picking = tl.load(picks) != 0
    for group in range(groups):
        products = _zeros(T, BF, BD)
        for start in range(part * share, stop, BF):
            slots = start + tl.arange(0, BF)
            neurons = tl.load(index_F + slots, mask=slots < stop, other=0).to(tl.int64)
            given = ()
            for token in tl.static_range(T):
                given += (tl.load(z_MF + (group * T + token) * F + slots, mask=slots < stop, other=0.0),)
            wanted = slots < stop
            if picks is not None:  # noqa: SIM102 - the first is known when compiling, the second is not
                if picking:
                    # Not in other cases, because loads of rows would then wait for z.
                    some = given[0] != 0
                    for token in tl.static_range(1, T):
                        some = some | (given[token] != 0)
                    wanted = wanted & some
            tile = wanted[:, None] & (columns < D)[None, :]
            pointers = contract_FD + neurons[:, None] * D + columns[None, :]
            w = tl.load(pointers, mask=tile, other=0.0, eviction_policy="evict_first")
            added = ()
            for token in tl.static_range(T):
                added += (products[token] + w.to(tl.float32) * given[token][:, None],)
            products = added
        for token in tl.static_range(T):
            partial_D = partial_MPD + ((group * T + token) * P + part) * D
            tl.store(partial_D + columns, tl.sum(products[token], 0), mask=columns < D)


@triton.jit
def _reduce_add(
    partial_MPD, bias_D, factor, residual_MD, out_MD,
    D: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    dtype = out_MD.dtype.element_ty
    token = tl.program_id(1)
    partial_PD = partial_MPD + token * P * D
    parts = tl.arange(0, BP)
    columns = tl.program_id(0) * BD + tl.arange(0, BD)
    inside = columns < D
    tile = (parts < P)[:, None] & inside[None, :]
    y = tl.sum(tl.load(partial_PD + parts[:, None] * D + columns[None, :], mask=tile, other=0.0), 0)
    if bias_D is not None:
        y += tl.load(bias_D + columns, mask=inside, other=0.0).to(tl.float32)
    y = _rounded(y, dtype)
    if factor is not None:
        y = _rounded(y * factor, dtype)
    if residual_MD is not None:
        y += tl.load(residual_MD + token * D + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_MD + token * D + columns, y.to(dtype), mask=inside)
