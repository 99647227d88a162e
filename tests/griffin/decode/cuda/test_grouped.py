"""The kernels for codes in groups against the same matrix in plain numbers, for every kind."""

import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from griffin.model.checkpoint.gguf_codes import GROUPINGS
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.native import library
from tests.griffin.decode.cuda.test_kernels import (
    DEVICE,
    DTYPES,
    activated,
    assert_near,
    kernels,
    make_norm,
    nans,
    normed,
    randn,
    scalar,
)
from tests.griffin.model.coded import laid_columns, laid_rows, sized_tensor

grouped = pytest.importorskip("griffin.decode.cuda.grouped", reason="needs triton", exc_type=ImportError)

pytestmark = pytest.mark.skipif(library() is None, reason="griffin/_native was not built: no C compiler")

T = GGMLQuantizationType
KINDS = pytest.mark.parametrize("kind", GROUPINGS, ids=lambda kind: kind.name)
# D is the smallest width for two levels. F columns are one and a half tiles.
D, F = 256, 192


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows_of(kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> tuple["grouped.Rows", Tensor]:
    """A random matrix as the kernels read it, and its numbers."""
    matrix = laid_rows(kind, sized_tensor(kind, rows, columns, seed), (rows, columns))
    return grouped.Rows.of(matrix.to(torch.device(DEVICE))), matrix.dense().to(DEVICE)


def columns_of(kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> tuple["grouped.Columns", Tensor]:
    matrix = laid_columns(kind, sized_tensor(kind, columns, rows, seed), (rows, columns))
    return grouped.Columns.of(matrix.to(torch.device(DEVICE))), matrix.dense().to(DEVICE)


def arranged(x_D: Tensor, kind: GGMLQuantizationType, norm: object = None) -> Tensor:
    out_KW = grouped.arranged(len(x_D), GROUPINGS[kind].bits, x_D.device).fill_(torch.nan)
    grouped.arrange(x_D, out_KW, norm)
    return out_KW


def widths(kind: GGMLQuantizationType) -> list[int]:
    """The smallest width, one that is no multiple of a tile, and several tiles. Two levels need multiples of 256."""
    return [256, 768] if GROUPINGS[kind].two_levels else [32, 96, 576, 1024]


def poisoned(halves: Tensor, rows: Tensor) -> None:
    """Set the scales of these rows to NaN."""
    halves[rows] = torch.nan


@KINDS
def test_rows_times_x(kind: GGMLQuantizationType) -> None:
    """Also for widths that do not fill a tile. Nothing is written beyond the output."""
    for width in widths(kind):
        matrix, exact_ND = rows_of(kind, 37, width)
        x_D, out_N = randn(width), nans(40)
        grouped.project(arranged(x_D, kind), matrix, out_N[:37])

        assert_near(out_N[:37], exact_ND @ x_D, torch.float32)
        assert out_N[37:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_kind", ["rms", "layer"])
def test_projections_norm_add_and_cap(dtype: torch.dtype, norm_kind: str) -> None:
    """They do this in the same way as projections of plain numbers."""
    matrix, exact_ND = rows_of(T.Q4_K, 37, 768)
    x_D, bias_N, residual_N = randn(768, dtype=dtype), randn(37, dtype=dtype), randn(37, dtype=dtype)
    norm = make_norm(norm_kind, 768, dtype)
    y_N = exact_ND @ normed(x_D, norm) + bias_N.float()
    x_KW, capped_N, factored_N = arranged(x_D, T.Q4_K, norm), nans(37, dtype=dtype), residual_N.clone()
    grouped.project(x_KW, matrix, capped_N, bias_N=bias_N, cap=30.0)
    grouped.project(x_KW, matrix, factored_N, bias_N=bias_N, factor=0.3, residual_N=factored_N)

    assert_near(capped_N, 30 * (y_N / 30).tanh(), dtype)
    assert_near(factored_N, 0.3 * y_N + residual_N.float(), dtype)


@pytest.mark.parametrize("gated", [False, True])
@KINDS
def test_expand(kind: GGMLQuantizationType, gated: bool) -> None:
    """Only kept neurons are read, and z of all others is 0. Gate and up may have different kinds."""
    other = T.Q8_0 if kind == T.Q4_0 else kind
    gate, gate_FD = rows_of(kind, F, D)
    up, up_FD = rows_of(other, F, D, seed=1)
    index_k = torch.randperm(F)[:21].sort().values.to(DEVICE)
    padded_F = torch.full((F,), 2**30, dtype=torch.int32, device=DEVICE)
    padded_F[:21] = index_k
    removed = torch.ones(F, dtype=torch.bool, device=DEVICE).index_fill(0, index_k, False)
    for matrix in (gate, up):
        poisoned(matrix.halves, removed)
    x_D, bias_F, z_F = randn(D), randn(F), nans(F)
    grouped.expand(
        arranged(x_D, kind), arranged(x_D, other), gate, up if gated else None, padded_F, scalar(21, torch.int32), z_F,
        activation="silu", dtype=torch.float32, gate_bias_F=bias_F, up_bias_F=bias_F if gated else None,
    )  # fmt: skip

    expected_F = activated(gate_FD @ x_D + bias_F, "silu") * (up_FD @ x_D + bias_F if gated else 1)
    assert_near(z_F, expected_F.where(~removed, 0), torch.float32)


@pytest.mark.parametrize("columns", [64, 192])
@KINDS
def test_sums_of_weighted_rows(kind: GGMLQuantizationType, columns: int) -> None:
    """In a group, some rows, one, all or none have a weight. The scales of a group without weights are not read."""
    matrix, exact_RC = columns_of(kind, 512, columns)
    size = GROUPINGS[kind].size
    z_R = randn(512).where(torch.rand(512, device=DEVICE) < 0.3, 0)
    z_R[size : 2 * size], z_R[3 * size : 4 * size] = 0, 1
    z_R[2 * size : 3 * size] = 0
    z_R[3 * size - 1] = 2
    matrix.records.view(torch.float16)[1] = torch.nan
    partial_PC = nans(grouped.row_splits(matrix), columns)
    grouped.contract(z_R, matrix, partial_PC)

    assert_near(partial_PC.sum(dim=0), z_R @ exact_RC, torch.float32)


@KINDS
def test_sums_of_no_row_or_one(kind: GGMLQuantizationType) -> None:
    """Also the first row or the last."""
    matrix, exact_RC = columns_of(kind, 256, 64)
    for rows in ([], [0], [255], [0, 31, 32, 255]):
        z_R, partial_PC = torch.zeros(256, device=DEVICE), nans(grouped.row_splits(matrix), 64)
        z_R[rows] = 1.5
        grouped.contract(z_R, matrix, partial_PC)

        assert_near(partial_PC.sum(dim=0), z_R @ exact_RC, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_repeat_bit_by_bit(dtype: torch.dtype) -> None:
    """The order of sums is fixed."""
    matrix, _ = columns_of(T.Q6_K, 512, 192)
    z_R = randn(512, dtype=dtype).float()
    first, second = (nans(grouped.row_splits(matrix), 192) for _ in range(2))
    grouped.contract(z_R, matrix, first)
    grouped.contract(z_R, matrix, second)

    assert torch.equal(first, second)


class Block:
    """An FF block of one kind, and thresholds that are far from every value that they are compared to.

    Rows of up and groups of inputs that must not be read have NaN as scales. So has the whole gate by neuron.
    """

    def __init__(self, kind: GGMLQuantizationType, dtype: torch.dtype, *, gated: bool) -> None:
        self.kind, self.gated, self.dtype = kind, gated, dtype
        own = laid_rows(kind, sized_tensor(kind, F, D), (F, D))
        by_input = own.transposed()
        assert isinstance(own, GroupedRows)
        assert isinstance(by_input, GroupedColumns)
        device = torch.device(DEVICE)
        gate_FD = own.dense().to(device)
        self.gate, self.gate_by_input = grouped.Rows.of(own.to(device)), grouped.Columns.of(by_input.to(device))
        self.up, up_FD = rows_of(kind, F, D, seed=1)
        self.x_D, self.norm = randn(D, dtype=dtype), make_norm("rms", D, dtype)
        self.means_D, self.resting_F = 0.3 * randn(D), 0.1 * randn(F)
        x_D = normed(self.x_D, self.norm)
        far_D = x_D - self.means_D
        near_D, self.input_limits_D = self._divided(far_D)
        # The second group of inputs must not be read.
        size = GROUPINGS[kind].size
        near_D[size : 2 * size], self.input_limits_D[size : 2 * size] = True, torch.inf
        self.offsets_F = gate_FD @ self.means_D
        given_F = activated(gate_FD @ far_D.where(~near_D, 0) + self.offsets_F, "silu")
        rests_F, self.gate_limits_F = self._divided(given_F)
        z_F = given_F * (up_FD @ x_D) if gated else given_F
        silent_F, self.output_limits_F = self._divided(z_F - self.resting_F)
        if gated:
            silent_F |= rests_F
        self.z_F = (z_F - self.resting_F).where(~silent_F, 0)
        acting = ~rests_F if gated else torch.ones(F, dtype=torch.bool)
        self.reads = [int((~near_D).sum()), int(acting.sum()), int((~silent_F).sum()), 1]
        self.gate.halves.fill_(torch.nan)
        poisoned(self.up.halves, rests_F)
        self.gate_by_input.records.view(torch.float16)[1] = torch.nan

    @staticmethod
    def _divided(values: Tensor) -> tuple[Tensor, Tensor]:
        """A random half of the values, and limits: well above these values, well below all others."""
        near = torch.rand(len(values), device=DEVICE) >= 0.5
        return near, torch.where(near, 1.5 * values.abs() + 0.05, 0.7 * values.abs() - 0.05)

    def run(self) -> tuple[Tensor, list[int]]:
        """z, and the counts of what was read."""
        picking = kernels.Picking(
            picks=scalar(1, torch.int32), gate_DF=nans(0), means_D=self.means_D, input_limits_D=self.input_limits_D,
            offsets_F=self.offsets_F, gate_limits_F=self.gate_limits_F if self.gated else None,
            resting_F=self.resting_F, output_limits_F=self.output_limits_F,
            partial_MPF=nans(grouped.row_splits(self.gate_by_input), F),
            reads=torch.zeros(4, dtype=torch.int64, device=DEVICE),
        )  # fmt: skip
        everything_F, z_F = torch.arange(F, dtype=torch.int32, device=DEVICE), nans(F)
        x_KW = arranged(self.x_D, self.kind, self.norm)
        grouped.sum_inputs(self.x_D, self.gate_by_input, picking, norm=self.norm)
        grouped.expand(
            x_KW, x_KW, self.gate, self.up if self.gated else None, everything_F, scalar(F, torch.int32), z_F,
            activation="silu", dtype=self.dtype, picking=picking,
        )  # fmt: skip
        return z_F, picking.reads.tolist()


@pytest.mark.parametrize("gated", [False, True])
@KINDS
def test_tokens_pick_what_they_read(kind: GGMLQuantizationType, gated: bool) -> None:
    """They read only the inputs and rows of up that they pick, and all reads are counted."""
    block = Block(kind, torch.float32, gated=gated)
    z_F, reads = block.run()

    assert_near(z_F, block.z_F, torch.float32)
    assert reads == block.reads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_pick_in_halves(dtype: torch.dtype) -> None:
    """Activations have half precision, with any codes."""
    block = Block(T.Q4_K, dtype, gated=True)
    z_F, reads = block.run()

    assert_near(z_F, block.z_F, dtype)
    assert reads == block.reads


def test_nothing_is_summed_where_no_token_picks() -> None:
    """The sums do not change, and nothing is counted."""
    block = Block(T.Q4_0, torch.float32, gated=True)
    partial_PF = nans(grouped.row_splits(block.gate_by_input), F)
    picking = kernels.Picking(
        scalar(0, torch.int32), nans(0), block.means_D, block.input_limits_D, block.offsets_F, block.gate_limits_F,
        block.resting_F, block.output_limits_F, partial_PF, torch.zeros(4, dtype=torch.int64, device=DEVICE),
    )  # fmt: skip
    grouped.sum_inputs(block.x_D, block.gate_by_input, picking)

    assert partial_PF.isnan().all()
    assert not picking.reads.any()


def test_moved_rows_are_refused() -> None:
    """Rows in another order would get the scales of other rows."""
    matrix = laid_columns(T.Q4_0, sized_tensor(T.Q4_0, 64, 64), (64, 64))

    with pytest.raises(ValueError, match="in order"):
        grouped.Columns.of(matrix.rows(torch.tensor([1, 0])))
