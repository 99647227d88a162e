"""Codes of GGUF files in the project's layout are the same numbers, to the bit."""

import pytest
import torch

from griffin.model.checkpoint.gguf_codes import GROUPINGS
from tests.griffin.instructions import EACH_FOR_WIDENING, restricted
from tests.griffin.model.coded import laid_columns, laid_rows
from tests.griffin.model.quantised import plain, random_tensor

KINDS = pytest.mark.parametrize("kind", GROUPINGS, ids=lambda kind: kind.name)


@EACH_FOR_WIDENING
@KINDS
@pytest.mark.parametrize("columns", [256, 512, 768, 1536])
def test_rows_hold_the_numbers_of_the_file(kind, columns, instructions):
    data = random_tensor(kind, 13, columns)
    matrix = laid_rows(kind, data, (13, columns))
    with restricted(instructions):
        assert matrix.dense().equal(plain(data, kind))
        assert matrix.dense(torch.bfloat16).equal(plain(data, kind).bfloat16())


@EACH_FOR_WIDENING
@KINDS
@pytest.mark.parametrize("columns", [64, 128, 192, 576])
def test_columns_hold_the_numbers_of_the_file(kind, columns, instructions):
    data = random_tensor(kind, columns, 512)
    matrix = laid_columns(kind, data, (512, columns))
    with restricted(instructions):
        assert matrix.dense().equal(plain(data, kind).t())
        assert matrix.dense(torch.bfloat16).equal(plain(data, kind).t().bfloat16())
