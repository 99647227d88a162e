"""Triton kernels for codes in groups, each with its launcher. ``kernels`` has those for plain numbers.

The products are those of ``GroupedRows`` (rows times x) and of ``GroupedColumns`` (sums of weighted rows), for all
formats. Codes are read in place; ``griffin.model.matrix.grouped`` and its C code define their layout. No step uses
these kernels yet: on a GPU, weights are made plain when they are loaded.

A code becomes the leading bits of a float between 1 and 2, which takes two instructions. Each float is 1 too large, so
the sum of the weights is subtracted from a weighted sum. When weighted rows are summed, one warp has one group at a
time. It goes through the rows of its group that have a weight, some at once, so that other rows cost nothing.

Shapes: D model width, N outputs of a projection, F feed-forward neurons, R rows, C columns, K codes of a word (8, or 4
of 8 bits), W words of a row, P parts of a sum that are reduced later. A word is 32 bits; for codes of 6 bits, it holds
their lower 4. Tiles: B before the letter.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, assignment"
# ruff: noqa: RUF005 - Triton's tuples cannot be unpacked

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin.decode.cuda.kernels import (
    MOST_PARTS,
    Norm,
    Picking,
    _acting,
    _activated,
    _distances,
    _gates,
    _norm_arguments,
    _normed,
    _picking_arguments,
    _rounded,
    _statistics,
    _store_projected,
    column_tile,
)
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.grouping import BLOCK

# Words that a program of four warps holds at once, of several rows; and words of one row that a warp holds.
WORDS = 1024
WARP_WORDS = 128
# Rows that one program multiplies. In matrices of fewer than BUSY_ROWS it is half, so that more programs run.
HEIGHT = 8
BUSY_ROWS = 4096
# Groups that one program sums at a time, each in a warp.
GROUPS = 8

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Layout(NamedTuple):
    """The layout of a matrix, known when a kernel is compiled: the fields of ``grouping.Layout`` with these names."""

    bits: int
    size: int
    two_levels: int
    has_minimums: int
    zero: int
    scales: int
    minimums: int
    supers: int
    super_minimums: int
    row_stride: int
    record_stride: int
    super_stride: int

    @classmethod
    def of(cls, matrix: GroupedRows | GroupedColumns) -> "Layout":
        return cls(*(int(getattr(matrix.layout, name)) for name in cls._fields))


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A matrix for kernels, in the memory of a grouped matrix.

    words: the codes as int32, one row for each row of the matrix.
    """

    words: Tensor
    layout: Layout
    columns: int

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.words)

    @property
    def word_count(self) -> int:
        """W."""
        return self.columns // _codes(self.layout.bits)


@dataclass(frozen=True, slots=True, eq=False)
class Rows(Coded):
    """``GroupedRows`` for kernels. halves, bytes: its records as float16 and as int8."""

    halves: Tensor
    bytes: Tensor

    @classmethod
    def of(cls, matrix: GroupedRows) -> "Rows":
        words, halves, scales = (matrix.records.view(dtype) for dtype in (torch.int32, torch.float16, torch.int8))
        return cls(words, Layout.of(matrix), matrix.columns, halves, scales)


@dataclass(frozen=True, slots=True, eq=False)
class Columns(Coded):
    """``GroupedColumns`` with all rows, for kernels. records, supers: its scales and their second level as int32."""

    records: Tensor
    supers: Tensor | None

    @classmethod
    def of(cls, matrix: GroupedColumns) -> "Columns":
        """
        Raises:
            ValueError: it has only some rows of a matrix.
        """
        if matrix.neurons is not None:
            raise ValueError("kernels read a matrix with groups across rows only with all its rows in order")
        supers = None if matrix.supers is None else matrix.supers.view(torch.int32)
        words, records = matrix.codes.view(torch.int32), matrix.records.view(torch.int32)
        return cls(words, Layout.of(matrix), matrix.columns, records, supers)


def _codes(bits: int) -> int:
    """The number of codes in a word."""
    return 4 if bits == 8 else 8


def words_tile(words: int, largest: int = WARP_WORDS) -> int:
    """The power of two that covers the words with the least left over. If several do, the largest one."""
    sizes = [size for size in (32, 64, 128, 256, 512) if size <= largest]
    return min(reversed(sizes), key=lambda size: int(triton.cdiv(words, size)) * size)


def row_splits(matrix: Columns) -> int:
    """The number of parts into which a sum over a matrix's rows is split, as in ``kernels.row_splits``."""
    return max(1, min(MOST_PARTS, int(triton.cdiv(matrix.count // matrix.layout.size, GROUPS))))


def arranged(columns: int, bits: int, device: torch.device) -> Tensor:
    """Memory for the result of ``arrange``, fp32 ``(K, W)``."""
    codes = _codes(bits)
    return torch.empty(codes, columns // codes, dtype=torch.float32, device=device)


def arrange(x_D: Tensor, out_KW: Tensor, norm: Norm | None = None) -> None:
    """Put norm(x) into the order of a row's codes: the factor of the k-th code of the w-th word."""
    K, W = out_KW.shape
    D, block = len(x_D), min(256, triton.next_power_of_2(W))
    arguments = _norm_arguments(norm, x_D.dtype)
    _arrange[(triton.cdiv(W, block),)](x_D, out_KW, *arguments, D, K, W, D // BLOCK, block, column_tile(D, 4096))


def project(
    x_KW: Tensor,
    matrix: Rows,
    out_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    factor: float | None = None,
    residual_N: Tensor | None = None,
    cap: float | None = None,
) -> None:
    """As ``kernels.project``, for an x that ``arrange`` has normed and put into order."""
    N, (BN, BW) = matrix.count, _tile(matrix.count, matrix.word_count)
    _project[(triton.cdiv(N, BN),)](
        x_KW, matrix.words, matrix.halves, matrix.bytes, bias_N, factor, residual_N, out_N, cap,
        matrix.layout, N, matrix.word_count, matrix.columns // BLOCK, BN, BW,
    )  # fmt: skip


def expand(
    gate_x_KW: Tensor,
    up_x_KW: Tensor,
    gate: Rows,
    up: Rows | None,
    index_F: Tensor,
    kept: Tensor,
    z_F: Tensor,
    *,
    activation: str,
    dtype: torch.dtype,
    gate_bias_F: Tensor | None = None,
    up_bias_F: Tensor | None = None,
    picking: Picking | None = None,
) -> None:
    """As ``kernels.expand``, but z of neuron j is at place j of ``z_F``, and 0 if it is not kept.

    up: None in plain blocks, whose only projection is then ``gate``.
    gate_x_KW, up_x_KW: the same x, in the order of ``gate`` and of ``up``. dtype: values are rounded to it.
    """
    F, rows, (BF, BW) = len(z_F), gate if up is None else up, _tile(gate.count // 2, gate.word_count)
    z_F.zero_()
    _expand[(triton.cdiv(F, BF),)](
        gate_x_KW, up_x_KW,
        gate.words, gate.halves, gate.bytes, rows.words, rows.halves, rows.bytes, gate_bias_F, up_bias_F,
        index_F, kept, z_F, *_picking_arguments(picking),
        gate.layout, rows.layout, F, gate.word_count, rows.word_count, gate.columns // BLOCK,
        up is not None, activation, _TYPES[dtype], BF, BW,
    )  # fmt: skip


def contract(z_R: Tensor, matrix: Columns, partial_PC: Tensor) -> None:
    """Partial sums of z_j times row j: fp32 ``(P, C)``, for ``kernels.reduce_add``. A row whose z is 0 is not read.

    partial_PC: P is ``row_splits``.
    """
    P, BW = len(partial_PC), words_tile(matrix.word_count)
    _sum_rows[(triton.cdiv(matrix.word_count, BW), P)](
        z_R, None, None, None, matrix.words, matrix.records, matrix.supers, partial_PC, None,
        None, None, 0.0, False, False,
        matrix.layout, matrix.count, matrix.columns, matrix.word_count, P, GROUPS, _at_once(matrix), BW, 1,
        num_warps=GROUPS,
    )  # fmt: skip


def sum_inputs(x_D: Tensor, matrix: Columns, picking: Picking, *, norm: Norm | None = None) -> None:
    """As ``kernels.sum_inputs``, with this matrix ``(D, F)`` instead of ``gate_DF``."""
    P, BW, D = picking.partial_MPF.shape[-2], words_tile(matrix.word_count), len(x_D)
    _sum_rows[(triton.cdiv(matrix.word_count, BW), P)](
        x_D, picking.picks, picking.means_D, picking.input_limits_D,
        matrix.words, matrix.records, matrix.supers, picking.partial_MPF, picking.reads,
        *_norm_arguments(norm, x_D.dtype),
        matrix.layout, D, matrix.columns, matrix.word_count, P, GROUPS, _at_once(matrix), BW, column_tile(D, 4096),
        num_warps=GROUPS,
    )  # fmt: skip


def _tile(rows: int, words: int) -> tuple[int, int]:
    """The number of rows, and of words of each row, that one program multiplies at a time."""
    height = HEIGHT if rows >= BUSY_ROWS else HEIGHT // 2
    return height, words_tile(words, WORDS // HEIGHT)


def _at_once(matrix: Columns) -> int:
    """The number of rows of a group that are loaded at a time. The number of registers limits it."""
    return 2 if matrix.layout.bits == 6 else 4


@triton.jit
def _moved(bits, FROM: tl.constexpr, TO: tl.constexpr):
    if FROM < TO:  # noqa: SIM108 - one of them must not be compiled
        moved = bits << (TO - FROM)
    else:
        moved = bits >> (FROM - TO)
    return moved


@triton.jit
def _raised(low, high, k: tl.constexpr, BITS: tl.constexpr):
    """1 plus the k-th code of a word times 2^-BITS. high: the upper two bits of the word's codes, four codes a byte."""
    if BITS == 4:
        fraction = _moved(low, 8 * (k % 4) + 4 * (k // 4), 19) & 0x780000
    elif BITS == 6:
        fraction = _moved(low, 8 * (k % 4) + 4 * (k // 4), 17) & 0x1E0000
        fraction |= _moved(high, 8 * (k % 4) + 2 * (k // 4), 21) & 0x600000
    else:
        fraction = _moved(low, 8 * k, 15) & 0x7F8000
    return (fraction | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _scale(halves, bytes, half, byte, super_half, mask, TWO_LEVELS: tl.constexpr):
    """A group's scale or minimum: a float16, or an int8 times the float16 of its superblock."""
    if TWO_LEVELS:
        value = tl.load(bytes + byte, mask=mask, other=0).to(tl.float32)
        value *= tl.load(halves + super_half, mask=mask, other=0.0).to(tl.float32)
    else:
        value = tl.load(halves + half, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _places(words, K: tl.constexpr, BLOCKS: tl.constexpr):
    """For each word of a row: its tile's first block, the tile's number of blocks, the block in the tile, the quad."""
    TILE: tl.constexpr = 16
    # A word is a quad of a block: four successive codes and, except with 8 bits, the four codes half a block later.
    QUADS: tl.constexpr = 32 // K
    tiles = words // (TILE * QUADS) * TILE
    inner = words % (TILE * QUADS)
    if BLOCKS % TILE == 0:
        # A constant, so that the compiler reads neighbours at once.
        count = TILE
        block, quad = inner % TILE, inner // TILE
    else:
        count = tl.maximum(tl.minimum(BLOCKS - tiles, TILE), 1)
        block, quad = inner % count, inner // count
    return tiles, count, block, quad


@triton.jit
def _arrange(
    x_D, out_KW,
    norm_weight_D, norm_bias_D, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    D: tl.constexpr, K: tl.constexpr, W: tl.constexpr, BLOCKS: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    dtype = x_D.dtype.element_ty
    if norm_weight_D is not None:
        mean, inverse = _statistics(x_D, eps, D, CENTRED, BD)
    words = tl.program_id(0) * BW + tl.arange(0, BW)
    inside = words < W
    tiles, _, block, quad = _places(words, K, BLOCKS)
    for k in tl.static_range(K):
        columns = 32 * (tiles + block) + 4 * quad + k % 4 + 16 * (k // 4)
        x = tl.load(x_D + columns, mask=inside, other=0.0).to(tl.float32)
        if norm_weight_D is not None:
            x = _normed(x, columns, inside, mean, inverse, norm_weight_D, norm_bias_D, dtype, ROUND_TWICE)
        tl.store(out_KW + k * W + words, x, mask=inside)


@triton.jit
def _grouped(products, weights, scale, minimum, LAYOUT: tl.constexpr):
    """A group's contribution, from the products of its raised codes (see ``_raised``) and the sum of their weights."""
    total = scale * ((products - weights) * (1 << LAYOUT.bits) - LAYOUT.zero * weights)
    if LAYOUT.has_minimums:
        total += minimum * weights
    return total


@triton.jit
def _row_products(
    x_KW, words, halves, bytes, rows, wanted,
    LAYOUT: tl.constexpr, W: tl.constexpr, BLOCKS: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Rows (int64) times x, ``(BN,)``. Rows that are not wanted give 0 and are not read."""
    BITS: tl.constexpr = LAYOUT.bits
    K: tl.constexpr = 4 if BITS == 8 else 8
    # The number of groups in a word: one, or one for each half of its codes.
    PIECES: tl.constexpr = 2 if LAYOUT.size == 16 and BITS != 8 else 1
    STRIDE: tl.constexpr = LAYOUT.row_stride
    sums = tl.zeros((BN, BW), tl.float32)
    for start in range(0, W, BW):
        w = start + tl.arange(0, BW)
        inside = w < W
        tile = wanted[:, None] & inside[None, :]
        tiles, count, block, quad = _places(w, K, BLOCKS)
        place = w
        if BITS == 6:
            place = w + 2 * tiles
        at = rows[:, None] * (STRIDE // 4) + place[None, :]
        low = tl.load(words + at, mask=tile, other=0, eviction_policy="evict_first")
        high = low
        if BITS == 6:
            at = rows[:, None] * (STRIDE // 4) + (tiles * BITS + (4 + quad // 2) * count + block)[None, :]
            high = tl.load(words + at, mask=tile, other=0, eviction_policy="evict_first")
            high = high >> (quad % 2 * 4)[None, :]
        for piece in tl.static_range(PIECES):
            group = block
            if LAYOUT.size == 16:
                group = count * (quad // 4 if BITS == 8 else piece) + block
            place = (tiles * (32 // LAYOUT.size) + group)[None, :]
            half, byte = rows[:, None] * (STRIDE // 2) + place, rows[:, None] * STRIDE + place
            supers = rows[:, None] * (STRIDE // 2) + ((tiles + block) // 8)[None, :]
            scale = _scale(
                halves, bytes, half + LAYOUT.scales // 2, byte + LAYOUT.scales, supers + LAYOUT.supers // 2,
                tile, LAYOUT.two_levels,
            )  # fmt: skip
            minimum = scale
            if LAYOUT.has_minimums:
                minimum = _scale(
                    halves, bytes, half + LAYOUT.minimums // 2, byte + LAYOUT.minimums,
                    supers + LAYOUT.super_minimums // 2, tile, LAYOUT.two_levels,
                )  # fmt: skip
            products = tl.zeros((BN, BW), tl.float32)
            weights = tl.zeros((BW,), tl.float32)
            for i in tl.static_range(K // PIECES):
                # If there are two pieces, the second one has the second half of the word's codes.
                x = tl.load(x_KW + (piece * 4 + i) * W + w, mask=inside, other=0.0, eviction_policy="evict_last")
                products += _raised(low, high, piece * 4 + i, BITS) * x[None, :]
                weights += x
            sums += _grouped(products, weights[None, :], scale, minimum, LAYOUT)
    return tl.sum(sums, 1)


@triton.jit
def _project(
    x_KW, words, halves, bytes, bias_N, factor, residual_N, out_N, cap,
    LAYOUT: tl.constexpr, N: tl.constexpr, W: tl.constexpr, BLOCKS: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    y = _row_products(x_KW, words, halves, bytes, rows.to(tl.int64), rows < N, LAYOUT, W, BLOCKS, BN, BW)
    _store_projected(y, rows, bias_N, factor, residual_N, out_N, cap, N)


@triton.jit
def _expand(
    gate_x_KW, up_x_KW,
    gate_words, gate_halves, gate_bytes, up_words, up_halves, up_bytes, gate_bias_F, up_bias_F,
    index_F, kept, z_F,
    picks, partial_PF, offsets_F, gate_limits_F, resting_F, output_limits_F, reads,
    P: tl.constexpr, BP: tl.constexpr,
    GATE_LAYOUT: tl.constexpr, UP_LAYOUT: tl.constexpr,
    F: tl.constexpr, W: tl.constexpr, UP_W: tl.constexpr, BLOCKS: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, dtype: tl.constexpr, BF: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    k = tl.load(kept)
    first = tl.program_id(0) * BF
    if first >= k:
        return

    slots = first + tl.arange(0, BF)
    present = slots < k
    neurons = tl.load(index_F + slots, mask=present, other=0).to(tl.int64)
    expands = present
    acts = present
    y = tl.zeros((BF,), tl.float32)
    if picks is not None:
        picking = tl.load(picks) != 0
        expands = present & (picking == 0)
        if picking:
            y = _gates(partial_PF, offsets_F, slots, present, F, P, BP)
            if GATED:
                acts = _acting(y, gate_limits_F, slots, present, dtype, ACTIVATION)
    if tl.max(expands.to(tl.int32), 0) > 0:
        y += _row_products(
            gate_x_KW, gate_words, gate_halves, gate_bytes, neurons, expands, GATE_LAYOUT, W, BLOCKS, BF, BW
        )
    if gate_bias_F is not None:
        # If tokens pick, the offsets contain the bias.
        y += tl.load(gate_bias_F + neurons, mask=expands, other=0.0).to(tl.float32)
    z = _rounded(_activated(_rounded(y, dtype), ACTIVATION), dtype)
    if GATED:
        y = tl.zeros((BF,), tl.float32)
        if tl.max(acts.to(tl.int32), 0) > 0:
            y += _row_products(up_x_KW, up_words, up_halves, up_bytes, neurons, acts, UP_LAYOUT, UP_W, BLOCKS, BF, BW)
        if up_bias_F is not None:
            y += tl.load(up_bias_F + neurons, mask=present, other=0.0).to(tl.float32)
        z = _rounded(z * _rounded(y, dtype), dtype)
    if picks is not None:  # noqa: SIM102 - the first is known when compiling, the second is not
        if picking:
            z = _distances(z, resting_F, output_limits_F, slots, present, acts, reads)
    tl.store(z_F + neurons, z, mask=present)


@triton.jit
def _half(words, SECOND: tl.constexpr):
    """The first or the second float16 of each word, as fp32."""
    return (words >> 16 * SECOND).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _four_scales(records, supers, record, super_record, column, mask, TWO_LEVELS: tl.constexpr):
    """Scales or minimums of four successive columns. Places are in bytes. ``column`` is a multiple of 4."""
    halves, at = records, record + 2 * column
    if TWO_LEVELS:
        halves, at = supers, super_record + 2 * column
    first = tl.load(halves + at // 4, mask=mask, other=0)
    second = tl.load(halves + at // 4 + 1, mask=mask, other=0)
    scales = (_half(first, 0), _half(first, 1), _half(second, 0), _half(second, 1))
    if TWO_LEVELS:
        four = tl.load(records + (record + column) // 4, mask=mask, other=0)
        levels = ()
        for i in tl.static_range(4):
            # A signed number of eight bits.
            levels = levels + (scales[i] * (four << 24 - 8 * i >> 24).to(tl.float32),)
        scales = levels
    return scales


@triton.jit
def _next(rest):
    """The number of the lowest set bit (negative if there is none), whether there is one, and the other bits."""
    bit = rest & -rest
    # The exponent of this power of two.
    number = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23 & 255) - 127
    return number, bit != 0, rest & (rest - 1)


@triton.jit
def _added(products, low, high, weights, K: tl.constexpr, BITS: tl.constexpr):
    added = ()
    for k in tl.static_range(K):
        added = added + (products[k] + _raised(low, high, k, BITS) * weights[:, None],)
    return added


@triton.jit
def _sum_rows(
    values_R, picks, means_R, limits_R, words, records, supers, partial_PC, reads,
    norm_weight_R, norm_bias_R, eps, CENTRED: tl.constexpr, ROUND_TWICE: tl.constexpr,
    LAYOUT: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    BG: tl.constexpr, AT_ONCE: tl.constexpr, BW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Sum rows weighted by values; with means, by the distances of normed values from them that exceed limits."""
    if picks is not None:  # noqa: SIM102 - the first is known when compiling, the second is not
        if tl.load(picks) == 0:
            return

    BITS: tl.constexpr = LAYOUT.bits
    SIZE: tl.constexpr = LAYOUT.size
    K: tl.constexpr = 4 if BITS == 8 else 8
    w = tl.program_id(0) * BW + tl.arange(0, BW)
    inside = w < W
    # The places of words in their tiles. A tile has 128 columns; the last one may have 64.
    TILE: tl.constexpr = 128
    tiles, inner = w // (TILE // K), w % (TILE // K)
    wide = tl.where((tiles + 1) * TILE <= C, 16, 8)
    at, lane = tiles * (4 * BITS) + inner, inner
    columns = tiles * TILE
    if BITS == 8:
        later = (inner >= wide).to(tl.int32)
        lane = inner - later * wide
        columns += later * 4 * wide
    columns += wide * (lane % 4) + lane // 4 * 4
    high_at = tiles * (4 * BITS) + wide + inner % (wide // 2)
    shift = (inner >= wide // 2).to(tl.int32) * 4

    if norm_weight_R is not None:
        mean, inverse = _statistics(values_R, eps, R, CENTRED, BR)
    part = tl.program_id(1)
    share = tl.cdiv(tl.cdiv(R // SIZE, P), BG) * BG
    stop = tl.minimum(R // SIZE, (part + 1) * share)
    sums = (tl.zeros((BG, BW), tl.float32),) * K
    counted = tl.zeros((BG,), tl.int32)
    for start in range(part * share, stop, BG):
        groups = start + tl.arange(0, BG)
        numbers = tl.arange(0, SIZE)[None, :]
        rows = groups[:, None] * SIZE + numbers
        read = rows < stop * SIZE
        values = tl.load(values_R + rows, mask=read, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if means_R is not None:
            if norm_weight_R is not None:
                dtype: tl.constexpr = values_R.dtype.element_ty
                values = _normed(
                    values, rows, read, mean, inverse, norm_weight_R, norm_bias_R, dtype, ROUND_TWICE
                )  # fmt: skip
            values -= tl.load(means_R + rows, mask=read, other=0.0)
            read = read & (tl.abs(values) > tl.load(limits_R + rows, mask=read, other=0.0))
        else:
            read = read & (values != 0)
        values = tl.where(read, values, 0.0)
        count = tl.sum(read.to(tl.int32), 1)
        counted += count
        rest = tl.sum(tl.where(read, 1 << numbers, 0), 1)
        products = (tl.zeros((BG, BW), tl.float32),) * K
        for _ in range(0, tl.max(count, 0), AT_ONCE):
            lows = ()
            highs = ()
            weights = ()
            for _ in tl.static_range(AT_ONCE):
                number, known, rest = _next(rest)
                pointers = words + ((groups * SIZE + number).to(tl.int64) * (LAYOUT.row_stride // 4))[:, None]
                tile = known[:, None] & inside[None, :]
                low = tl.load(pointers + at[None, :], mask=tile, other=0, eviction_policy="evict_first")
                high = low
                if BITS == 6:
                    high = tl.load(pointers + high_at[None, :], mask=tile, other=0, eviction_policy="evict_first")
                lows = lows + (low,)
                highs = highs + (high,)
                weights = weights + (tl.sum(tl.where(numbers == number[:, None], values, 0.0), 1),)
            for i in tl.static_range(AT_ONCE):
                products = _added(products, lows[i], highs[i] >> shift[None, :], weights[i], K, BITS)
        total = tl.sum(values, 1)[:, None]
        tile = (count > 0)[:, None] & inside[None, :]
        record = groups.to(tl.int64)[:, None] * LAYOUT.record_stride
        super_record = (groups * SIZE // 256)[:, None] * LAYOUT.super_stride
        summed = ()
        for piece in tl.static_range(K // 4):
            column = (columns + 4 * wide * piece)[None, :]
            scales = _four_scales(
                records, supers, record + LAYOUT.scales, super_record + LAYOUT.supers, column, tile, LAYOUT.two_levels
            )  # fmt: skip
            minimums = scales
            if LAYOUT.has_minimums:
                minimums = _four_scales(
                    records, supers, record + LAYOUT.minimums, super_record + LAYOUT.super_minimums,
                    column, tile, LAYOUT.two_levels,
                )  # fmt: skip
            for i in tl.static_range(4):
                of_group = _grouped(products[4 * piece + i], total, scales[i], minimums[i], LAYOUT)
                summed = summed + (sums[4 * piece + i] + of_group,)
        sums = summed
    for k in tl.static_range(K):
        column = columns + k % 4 + 4 * wide * (k // 4)
        tl.store(partial_PC + part * C + column, tl.sum(sums[k], 0), mask=inside)
    if means_R is not None:  # noqa: SIM102 - the first is known when compiling, the second is not
        if tl.program_id(0) == 0:
            tl.atomic_add(reads, tl.sum(counted, 0).to(tl.int64))
            if part == 0:
                tl.atomic_add(reads + 3, tl.full((), 1, tl.int64))
