"""Codes in groups as a matrix: products, rows, parts and buffers equal those of the same numbers in plain form."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn

from griffin.model.checkpoint.gguf_codes import GROUPINGS
from griffin.model.forward import share
from griffin.model.matrix import grouped
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.matrix import Matrix, joined
from griffin.model.matrix.modules import MatrixEmbedding, MatrixLinear, matrices
from griffin.model.matrix.native import library
from tests.griffin.model.coded import coded_model, laid_columns, laid_rows, sized_tensor
from tests.griffin.model.quantised import plain

pytestmark = pytest.mark.skipif(library() is None, reason="griffin/_native was not built: no C compiler")

T = GGMLQuantizationType
ROWS, COLUMNS = 512, 256
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])


def of_rows(kind: GGMLQuantizationType, dtype: torch.dtype) -> tuple[Matrix, Tensor]:
    data = sized_tensor(kind, ROWS, COLUMNS)
    return laid_rows(kind, data, (ROWS, COLUMNS), dtype), plain(data, kind)


def of_columns(kind: GGMLQuantizationType, dtype: torch.dtype) -> tuple[Matrix, Tensor]:
    data = sized_tensor(kind, COLUMNS, ROWS)
    return laid_columns(kind, data, (ROWS, COLUMNS), dtype), plain(data, kind).t().contiguous()


FORMS = pytest.mark.parametrize("made", [of_rows, of_columns], ids=["rows", "columns"])
KINDS = pytest.mark.parametrize("kind", GROUPINGS, ids=lambda kind: kind.name)


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Whether values agree up to the rounding of the dtype."""
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert float((found.double() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@DTYPES
@FORMS
@KINDS
def test_products(kind: GGMLQuantizationType, made, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """With one vector and several, with a bias and without, and with gathered rows."""
    matrix, exact = made(kind, dtype)
    gathered, index_k = matrix.rows(torch.arange(1, ROWS, 3)), torch.arange(1, ROWS, 3)
    generator = torch.Generator().manual_seed(1)
    for shape in ((), (5,), (2, 3)):
        x = torch.randn(*shape, COLUMNS, generator=generator).to(dtype)
        z = torch.randn(*shape, ROWS, generator=generator).to(dtype)
        bias_R, bias_C = torch.randn(ROWS).to(dtype), torch.randn(COLUMNS).to(dtype)

        near(matrix.product(x), x.double() @ exact.t().double(), dtype)
        near(matrix.product(x, bias_R), x.double() @ exact.t().double() + bias_R, dtype)
        near(matrix.weighted_rows(z), z.double() @ exact.double(), dtype)
        near(matrix.weighted_rows(z, bias_C), z.double() @ exact.double() + bias_C, dtype)
        near(gathered.product(x), x.double() @ exact[index_k].t().double(), dtype)
        near(gathered.weighted_rows(z[..., index_k]), z[..., index_k].double() @ exact[index_k].double(), dtype)


@FORMS
@KINDS
def test_rows_and_parts(kind: GGMLQuantizationType, made) -> None:  # type: ignore[no-untyped-def]
    """Parts, gathered rows and filled buffers have the same numbers."""
    matrix, exact = made(kind, torch.float32)
    index_k = torch.tensor([3, 0, 300, 299, ROWS - 1])
    room = matrix.room(9)
    assert room.shape == (9, COLUMNS)
    room.part(0, 5).fill_(matrix, index_k)
    part = matrix.part(37, 301)

    assert torch.equal(matrix.dense(), exact)
    assert torch.equal(matrix.rows(index_k).dense(), exact[index_k])
    assert torch.equal(matrix.rows(index_k).rows(torch.tensor([4, 1])).dense(), exact[[ROWS - 1, 0]])
    assert torch.equal(room.part(0, 5).dense(), exact[index_k])
    assert torch.equal(part.dense(), exact[37:301])
    assert torch.equal(part.part(5, 9).dense(), exact[42:46])
    assert part.planes[0].data_ptr() == matrix.planes[0][37].data_ptr()
    assert matrix.contiguous() is matrix
    assert matrix.to(torch.device("cpu")).dense().equal(exact)
    torch.testing.assert_close(matrix.row_norms(), exact.norm(dim=1))


@FORMS
@pytest.mark.parametrize("kind", [T.Q4_1, T.Q6_K], ids=lambda kind: kind.name)
def test_splits(kind: GGMLQuantizationType, made) -> None:  # type: ignore[no-untyped-def]
    """Splits are views with their own rows; joined, they are one matrix again."""
    matrix, exact = made(kind, torch.float32)
    sizes = [100, 12, 400]
    parts = matrix.split(sizes)

    assert [part.shape for part in parts] == [(size, COLUMNS) for size in sizes]
    for part, wanted in zip(parts, exact.split(sizes), strict=True):
        assert torch.equal(part.dense(), wanted)
    assert torch.equal(joined(parts).dense(), exact)
    assert torch.equal(joined([parts[2], parts[0]]).dense(), torch.cat([exact[112:], exact[:100]]))


@DTYPES
@KINDS
@pytest.mark.parametrize(("rows", "columns"), [(64, 256), (512, 256), (192, 768), (320, 512), (128, 1280)])
def test_transposed(kind: GGMLQuantizationType, rows: int, columns: int, dtype: torch.dtype) -> None:
    """The transpose equals the file's tensor laid out by column, to the bit, with any number of threads."""
    data = sized_tensor(kind, rows, columns)
    matrix = laid_rows(kind, data, (rows, columns), dtype)
    wanted = laid_columns(kind, data, (columns, rows), dtype)
    for threads in (1, 3):
        with _threads(threads):
            turned = matrix.transposed()

        assert isinstance(turned, GroupedColumns)
        assert (turned.shape, turned.dtype, turned.format) == ((columns, rows), dtype, matrix.format)
        assert turned.dense().equal(matrix.dense().t())
        assert turned.codes.equal(wanted.codes)
        assert turned.records.equal(wanted.records)
        assert (turned.supers is None) == (wanted.supers is None)
        if turned.supers is not None and wanted.supers is not None:
            assert turned.supers.equal(wanted.supers)


@pytest.mark.parametrize(("rows", "columns"), [(96, 32), (64, 96), (448, 160)])
@pytest.mark.parametrize("kind", [k for k, g in GROUPINGS.items() if not g.two_levels], ids=lambda kind: kind.name)
def test_transposed_in_blocks_of_32(kind: GGMLQuantizationType, rows: int, columns: int) -> None:
    """Widths that end in part of a tile. Without a whole tile, the transpose is plain numbers with the same values."""
    matrix = laid_rows(kind, sized_tensor(kind, rows, columns), (rows, columns), torch.bfloat16)
    turned = matrix.transposed()

    assert isinstance(turned, Dense if rows % 64 else GroupedColumns)
    assert (turned.shape, turned.dtype) == ((columns, rows), torch.bfloat16)
    assert turned.dense(torch.float32).equal(matrix.dense(torch.float32).t())


def test_columns_cannot_be_transposed() -> None:
    """It is never needed."""
    with pytest.raises(NotImplementedError, match="already in the form for sums of weighted rows"):
        of_columns(T.Q4_0, torch.float32)[0].transposed()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_bytes_are_those_of_the_file() -> None:
    """Codes and scales, except for a row's padding and for five bits stored as six."""
    for kind, sizes in ((T.Q4_0, 18 * 8), (T.Q4_1, 20 * 8), (T.Q8_0, 34 * 8), (T.Q4_K, 148), (T.Q6_K, 210)):
        rows, columns = of_rows(kind, torch.float32)[0], of_columns(kind, torch.float32)[0]

        assert 0 <= rows.bytes - ROWS * sizes < 8 * ROWS
        assert rows.row_bytes == rows.bytes // ROWS
        assert columns.bytes == ROWS * COLUMNS // 256 * sizes
        assert columns.row_bytes < sizes


def test_products_of_more_rows_than_are_widened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are widened in portions, and the last portion is smaller."""
    matrix, exact = of_rows(T.Q4_K, torch.float32)
    monkeypatch.setattr(grouped, "NUMBERS_AT_ONCE", 100 * COLUMNS)
    x = torch.randn(3, COLUMNS)

    near(matrix.product(x), x.double() @ exact.t().double(), torch.float32)


def test_a_product_leaves_earlier_ones_alone() -> None:
    """Scratch memory is used again, results are not."""
    (first, _), (second, _) = of_rows(T.Q4_0, torch.float32), of_columns(T.Q8_0, torch.float32)
    x, z = torch.randn(COLUMNS), torch.randn(ROWS)
    y = first.product(x)
    kept = y.clone()
    second.weighted_rows(z), second.product(x), first.product(-x)

    assert torch.equal(y, kept)


@FORMS
@DTYPES
def test_modules(made, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """A projection in either orientation, with its bias."""
    matrix, exact = made(T.Q5_K, dtype)
    by_input = isinstance(matrix, GroupedColumns)
    bias = torch.randn(COLUMNS if by_input else ROWS).to(dtype)
    module = MatrixLinear(matrix, bias, by_input=by_input)
    x = torch.randn(2, 3, ROWS if by_input else COLUMNS).to(dtype)

    near(module(x), x.double() @ (exact if by_input else exact.t()).double() + bias, dtype)
    assert module.weight.dtype == dtype
    assert [held.shape for held in matrices(nn.ModuleList([module]))] == [(ROWS, COLUMNS)]


@DTYPES
@KINDS
def test_an_embedding(kind: GGMLQuantizationType, dtype: torch.dtype) -> None:
    """Ids of any shape, and a factor."""
    matrix, exact = of_rows(kind, dtype)
    ids = torch.tensor([[5, 0, 5], [ROWS - 1, 7, 300]])

    assert torch.equal(MatrixEmbedding(matrix, 1.0)(ids), exact[ids].to(dtype))
    assert torch.equal(MatrixEmbedding(matrix, 2.0)(ids), exact[ids].to(dtype) * 2)


@FORMS
def test_a_shared_copy_of_a_module_takes_no_memory(made) -> None:  # type: ignore[no-untyped-def]
    """It shares planes and other tensors; what describes the format is small."""
    matrix, _ = made(T.Q4_K, torch.float32)
    module = MatrixLinear(matrix, None, by_input=isinstance(matrix, GroupedColumns))
    shared = copy.deepcopy(module, {id(tensor): tensor for tensor in module.buffers()})
    places = [[t.data_ptr() for t in (*m.matrix.planes, *m.matrix.shared)] for m in (module, shared)]

    assert places[0] == places[1]
    like = (*shared._like.planes, *shared._like.shared)
    assert sum(tensor.untyped_storage().nbytes() for tensor in like) == 0


def test_a_shared_model_takes_no_memory() -> None:
    """All its tensors are the model's."""
    model, _ = coded_model(lambda _: T.Q4_K, hidden_size=256, intermediate_size=256, head_dim=64)
    shared = share(model)
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    assert {tensor.data_ptr() for tensor in (*shared.parameters(), *shared.buffers())} <= own
    assert all(
        a.planes[0].data_ptr() == b.planes[0].data_ptr() for a, b in zip(matrices(model), matrices(shared), strict=True)
    )


def test_formats_of_grouped_matrices() -> None:
    """Formats are those of the compiled step, and such matrices are never merged."""
    for kind, grouping in GROUPINGS.items():
        rows, columns = of_rows(kind, torch.bfloat16)[0], of_columns(kind, torch.bfloat16)[0]
        assert isinstance(rows, GroupedRows)
        for matrix in (rows, columns):
            assert matrix.format == f"grouped{grouping.bits}"
            assert (matrix.shape, matrix.dtype, matrix.merges) == ((ROWS, COLUMNS), torch.bfloat16, False)
        assert Dense(rows.dense()).format == "bfloat16"
