"""Every format through one interface: products, rows, parts and bytes are those of the numbers it represents."""

import copy

import pytest
import torch
from torch import Tensor, nn

from griffin.model.matrix.dense import Dense
from griffin.model.matrix.int8 import ROWS_AT_ONCE, Int8
from griffin.model.matrix.matrix import Matrix, joined
from griffin.model.matrix.modules import MatrixLinear, by_input, by_output, matrices, put_by_input, put_by_output

ROWS, COLUMNS = 21, 12


def numbers(rows: int = ROWS, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, COLUMNS, generator=generator) * torch.rand(rows, 1, generator=generator)


MATRICES = {
    "float32": lambda rows, seed: Dense(numbers(rows, seed)),
    "bfloat16": lambda rows, seed: Dense(numbers(rows, seed).bfloat16()),
    "transposed": lambda rows, seed: Dense(numbers(rows, seed).t().contiguous().t()),
    "int8": lambda rows, seed: Int8.rounded(numbers(rows, seed)),
    "int8 by column": lambda rows, seed: Int8.rounded(numbers(rows, seed).t().contiguous()).transposed(),
}


@pytest.fixture(params=MATRICES)
def matrix(request: pytest.FixtureRequest) -> Matrix:
    made: Matrix = MATRICES[request.param](ROWS, 1)
    return made


def near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


def test_products(matrix: Matrix) -> None:
    """With one vector and several, with a bias and without, in the matrix's own dtype."""
    exact = matrix.dense(torch.float32)
    for shape in ((), (5,), (2, 3)):
        x, z = torch.randn(*shape, COLUMNS).to(matrix.dtype), torch.randn(*shape, ROWS).to(matrix.dtype)
        bias_R, bias_C = torch.randn(ROWS).to(matrix.dtype), torch.randn(COLUMNS).to(matrix.dtype)

        assert matrix.product(x).dtype == matrix.weighted_rows(z).dtype == matrix.dtype
        near(matrix.product(x), x.float() @ exact.t(), matrix.dtype)
        near(matrix.product(x, bias_R), x.float() @ exact.t() + bias_R.float(), matrix.dtype)
        near(matrix.weighted_rows(z), z.float() @ exact, matrix.dtype)
        near(matrix.weighted_rows(z, bias_C), z.float() @ exact + bias_C.float(), matrix.dtype)


def test_rows_and_parts(matrix: Matrix) -> None:
    """Parts, gathered rows and joined parts have the same numbers."""
    exact, index_k = matrix.dense(), torch.tensor([3, 0, 20])
    room = matrix.room(5)
    room.part(0, 3).fill_(matrix, index_k)

    assert torch.equal(matrix.rows(index_k).dense(), exact[index_k])
    assert torch.equal(room.part(0, 3).dense(), exact[index_k])
    assert torch.equal(matrix.part(2, 9).dense(), exact[2:9])
    assert [part.shape for part in matrix.split([4, 17])] == [(4, COLUMNS), (17, COLUMNS)]
    assert torch.equal(joined([matrix.part(5, 9), matrix.part(0, 2)]).dense(), torch.cat([exact[5:9], exact[:2]]))
    assert torch.equal(matrix.contiguous().dense(), exact)
    torch.testing.assert_close(matrix.row_norms(), exact.float().norm(dim=1))


def test_parts_are_views(matrix: Matrix) -> None:
    """Parts that follow each other in memory are joined without a copy."""
    whole = matrix.contiguous()
    together = joined(whole.split([4, 17]))

    assert together.planes[0].data_ptr() == whole.planes[0].data_ptr()
    assert torch.equal(together.dense(), whole.dense())


def test_transposed(matrix: Matrix) -> None:
    """The same numbers to the bit, each row contiguous, in its own memory; transposed twice, it is the same again."""
    turned = matrix.transposed()

    assert turned.shape == (COLUMNS, ROWS)
    assert (turned.format, turned.dtype) == (matrix.format, matrix.dtype)
    assert turned.dense().equal(matrix.dense().t())
    assert turned.transposed().dense().equal(matrix.dense())
    assert turned.planes[0].is_contiguous()
    assert turned.planes[0].data_ptr() != matrix.planes[0].data_ptr()
    assert turned.code_bytes == matrix.code_bytes
    torch.testing.assert_close(turned.row_norms(), matrix.column_norms())
    torch.testing.assert_close(turned.column_norms(), matrix.row_norms())


def test_a_transpose_keeps_what_it_computes_in() -> None:
    """float16 numbers with products in fp32."""
    turned = Dense(numbers().half(), torch.float32).transposed()

    assert (turned.format, turned.dtype) == ("float16", torch.float32)


def test_bytes_are_those_of_all_planes() -> None:
    """One byte for each number, and four for each row."""
    matrix = Int8.rounded(numbers())

    assert (matrix.bytes, matrix.row_bytes) == (ROWS * (COLUMNS + 4), COLUMNS + 4)
    assert Dense(numbers().bfloat16()).row_bytes == 2 * COLUMNS


def test_rounding_to_int8() -> None:
    """No number moves by more than half a step of its row. A row of zeros and the largest number stay."""
    exact = numbers()
    exact[4] = 0
    found = Int8.rounded(exact)
    step_R1 = exact.abs().amax(dim=1, keepdim=True) / 127

    assert ((found.dense() - exact).abs() <= step_R1 / 2 + 1e-7).all()
    assert not found.dense()[4].any()
    torch.testing.assert_close(found.dense().abs().amax(dim=1), exact.abs().amax(dim=1))


def test_products_of_more_rows_than_are_widened_at_once() -> None:
    """As in a vocabulary."""
    matrix = Int8.rounded(numbers(2 * ROWS_AT_ONCE + 3))
    x, z = torch.randn(2, COLUMNS), torch.randn(2, matrix.row_count)

    torch.testing.assert_close(matrix.product(x), x @ matrix.dense().t(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(matrix.weighted_rows(z), z @ matrix.dense(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("of_input", [True, False])
def test_modules_that_hold_a_matrix(of_input: bool) -> None:
    """They compute what the projection did. A copy of the tree shares the planes."""
    linear = nn.Linear(COLUMNS, ROWS)
    rounded = Int8.rounded((by_input if of_input else by_output)(linear).dense())
    module = MatrixLinear(rounded, linear.bias.detach(), by_input=of_input)
    shared = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.buffers(), *module.parameters())})
    x = torch.randn(3, COLUMNS)

    torch.testing.assert_close(module(x), linear(x), atol=0.05, rtol=0.05)
    assert torch.equal(shared(x), module(x))
    assert shared.matrix.planes[0].data_ptr() == module.matrix.planes[0].data_ptr()
    assert [matrix.bytes for matrix in matrices(nn.ModuleList([module, shared]))] == [rounded.bytes]


def test_a_matrix_is_put_back_where_it_came_from() -> None:
    """In either orientation of the module's storage."""
    linear, x = nn.Linear(COLUMNS, ROWS), torch.randn(3, COLUMNS)
    expected = linear(x)
    put_by_output(linear, by_output(linear).contiguous())
    put_by_input(linear, by_input(linear).contiguous())

    assert by_input(linear).planes[0].is_contiguous()
    torch.testing.assert_close(linear(x), expected)
