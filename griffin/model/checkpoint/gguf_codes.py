"""Tensors of a GGUF file as matrices with the file's own codes: nothing is rounded, only moved.

Shapes: R rows, C columns.
"""

from collections.abc import Mapping

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from griffin.model.matrix.grouped import GroupedColumns, GroupedRows, column_records
from griffin.model.matrix.grouping import Grouping, Layout
from griffin.model.matrix.native import address, library, spread

T = GGMLQuantizationType

# Five bits become six, two and three become four. The number that a code represents stays the same.
GROUPINGS: Mapping[GGMLQuantizationType, Grouping] = {
    T.Q4_0: Grouping(bits=4, zero=8),
    T.Q4_1: Grouping(bits=4, minimums=True),
    T.Q5_0: Grouping(bits=6, zero=16),
    T.Q5_1: Grouping(bits=6, minimums=True),
    T.Q8_0: Grouping(bits=8, zero=128),
    T.Q2_K: Grouping(bits=4, size=16, two_levels=True, minimums=True),
    T.Q3_K: Grouping(bits=4, size=16, two_levels=True, zero=4),
    T.Q4_K: Grouping(bits=4, two_levels=True, minimums=True),
    T.Q5_K: Grouping(bits=6, two_levels=True, minimums=True),
    T.Q6_K: Grouping(bits=6, size=16, two_levels=True, zero=32),
}


def row_sizes(kind: GGMLQuantizationType, shape: tuple[int, int]) -> list[int]:
    """Bytes of the tensors of a matrix ``(R, C)`` with groups along its rows."""
    return [shape[0] * Layout.of_rows(GROUPINGS[kind], shape[1]).row_stride]


def column_sizes(kind: GGMLQuantizationType, shape: tuple[int, int]) -> list[int]:
    """Bytes of the tensors of a matrix ``(R, C)`` with groups across its rows."""
    grouping, layout = GROUPINGS[kind], Layout.of_columns(GROUPINGS[kind], shape[1])
    groups, supers = column_records(grouping, shape[0])
    sizes = [shape[0] * layout.row_stride, groups * layout.record_stride, supers * layout.super_stride]
    return [size for size in sizes if size]


def lay_rows(
    source: NDArray[np.uint8],
    kind: GGMLQuantizationType,
    shape: tuple[int, int],
    room: list[Tensor],
    dtype: torch.dtype,
    order_R: Tensor | None = None,
) -> GroupedRows:
    """A tensor ``(R, C)`` of a file.

    Args:
        source: its bytes.
        room: of ``row_sizes``.
        dtype: of activations and products.
        order_R: for each row, the tensor's row that it holds; int64. None: the order stays.
    """
    native, (rows, columns), grouping = library(), shape, GROUPINGS[kind]
    assert native is not None
    records = room[0].view(rows, -1)
    matrix = GroupedRows(records, grouping, columns, dtype)

    def lay(first: int, end: int) -> None:
        native.griffin_lay_rows(
            records.data_ptr(), source.ctypes.data, matrix.layout, int(kind), GGML_QUANT_SIZES[kind][1], columns,
            address(order_R), first, end,
        )  # fmt: skip

    spread(rows, 1, lay)
    return matrix


def lay_columns(
    source: NDArray[np.uint8],
    kind: GGMLQuantizationType,
    shape: tuple[int, int],
    room: list[Tensor],
    dtype: torch.dtype,
) -> GroupedColumns:
    """The transpose ``(R, C)`` of a tensor ``(C, R)`` of a file.

    Args:
        source: its bytes.
        room: of ``column_sizes``.

    Raises:
        MemoryError
    """
    native, (rows, columns), grouping = library(), shape, GROUPINGS[kind]
    assert native is not None
    groups, supers = column_records(grouping, rows)
    codes, records, *second = (part.view(count, -1) for part, count in zip(room, (rows, groups, supers), strict=False))
    matrix = GroupedColumns(codes, None, records, second[0] if second else None, grouping, columns, dtype)

    def lay(first: int, end: int) -> None:
        if native.griffin_lay_columns(
            codes.data_ptr(), records.data_ptr(), address(matrix.supers), source.ctypes.data, matrix.layout, int(kind),
            GGML_QUANT_SIZES[kind][1], rows, columns, first, end,
        ):  # fmt: skip
            raise MemoryError("no memory to lay out codes")

    spread(rows, grouping.unit, lay)
    return matrix
