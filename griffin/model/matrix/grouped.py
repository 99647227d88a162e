"""Whole numbers of 4, 6 or 8 bits, with a scale for each group of neighbours, as in GGUF files.

If rows are multiplied by x, groups lie along the rows (``GroupedRows``). If weighted rows are summed up, groups lie
across rows, over neighbours in one column (``GroupedColumns``): a file stores these matrices transposed.

Products run in the activations' dtype. A part of the matrix at a time becomes plain numbers, in reused memory. The
decode step has its own products, on the codes.

Shapes: R rows, C columns, G groups of rows.
"""

import ctypes
import threading
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouping import COLUMN_UNIT, SUPER, Grouping, Layout
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.native import address, library, spread
from griffin.model.memory import Room

# Numbers that become plain at once for a product: 16 MB in bfloat16. With fewer, products take longer.
NUMBERS_AT_ONCE = 2**23

_scratch = threading.local()


class _Grouped(Matrix):
    """What both layouts share.

    dtype: of activations and products.
    """

    merges = False
    layout: Layout

    def __init__(self, grouping: Grouping, columns: int, dtype: torch.dtype) -> None:
        self.grouping, self._columns, self._dtype = grouping, columns, dtype

    @property
    def format(self) -> str:  # type: ignore[override]
        return self.grouping.name

    @property
    def code_bytes(self) -> int:
        return self.grouping.code_bytes(self.row_count * self.columns)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def columns(self) -> int:
        return self._columns

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        wanted = dtype or self._dtype
        out = torch.empty(self.row_count, self.columns, dtype=_computed(wanted))
        self._widen(out, 0)
        return out.to(wanted)

    @abstractmethod
    def _write(self, at: int, halves: bool, stride: int, first: int, end: int) -> None:
        """Write the numbers of some rows to an address, bfloat16 if ``halves`` and else fp32.

        Raises:
            MemoryError
        """

    def _widen(self, out: Tensor, first: int) -> None:
        """Write the numbers of as many rows as ``out`` has, from row ``first`` on."""
        stride, halves = out.stride(0), out.dtype == torch.bfloat16
        row_bytes = stride * out.element_size()

        def write(start: int, end: int) -> None:
            self._write(out.data_ptr() + start * row_bytes, halves, stride, first + start, first + end)

        spread(len(out), 1, write)

    def _plain(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """Some rows ``(end - first, C)``, valid until the next product."""
        room = _room(end - first, self.columns, _computed(dtype))
        self._widen(room, first)
        return room.to(dtype)


class GroupedRows(_Grouped):
    """One plane, records uint8 ``(R, bytes)``: a row's codes, then its scales, minimums and second level."""

    def __init__(self, records: Tensor, grouping: Grouping, columns: int, dtype: torch.dtype) -> None:
        super().__init__(grouping, columns, dtype)
        self.records, self.layout = records, Layout.of_rows(grouping, columns)

    @property
    def planes(self) -> Sequence[Tensor]:
        return (self.records,)

    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> "GroupedRows":
        return GroupedRows(planes[0], self.grouping, self._columns, self._dtype)

    @property
    def is_finite(self) -> bool:
        start = self.layout.supers if self.grouping.two_levels else self.layout.scales
        return _finite_halves(self.records[:, start : start + self.grouping.half_bytes(self.columns)])

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        at_once, rows = max(1, NUMBERS_AT_ONCE // self.columns), self.row_count
        parts = [
            functional.linear(x, self._plain(first, min(rows, first + at_once), x.dtype))
            for first in range(0, rows, at_once)
        ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if bias_R is None else y + bias_R

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        return functional.linear(z, self.dense(z.dtype).t(), bias_C)

    def transposed(self, room: Room | None = None) -> Matrix:
        rows, columns = self.columns, self.row_count
        if columns % COLUMN_UNIT:
            return Dense(self.dense(torch.float32).t().contiguous(), self._dtype)
        groups, supers = column_records(self.grouping, rows)
        layout = Layout.of_columns(self.grouping, columns)
        shapes = ((rows, layout.row_stride), (groups, layout.record_stride), (supers, layout.super_stride))
        room = room or Room()
        codes, records, second = (room.matrix(*shape, torch.uint8) for shape in shapes)
        turned = GroupedColumns(codes, None, records, second if supers else None, self.grouping, columns, self._dtype)

        def turn(first: int, end: int) -> None:
            if _native().griffin_turn_rows(
                codes.data_ptr(), records.data_ptr(), address(turned.supers), self.records.data_ptr(), self.layout,
                turned.layout, rows, columns, first, end,
            ):  # fmt: skip
                raise MemoryError("no memory to lay out codes")

        spread(rows, self.grouping.unit, turn)
        return turned

    def _write(self, at: int, halves: bool, stride: int, first: int, end: int) -> None:
        _native().griffin_widen_rows(at, halves, stride, self.records.data_ptr(), self.layout, self.columns, first, end)


class GroupedColumns(_Grouped):
    """Rows that share their scales with neighbours.

    codes: plane uint8 ``(R, bytes)``.
    neurons: plane int32 ``(R,)``: the index of each row in the whole matrix; None if all rows are there.
    records: shared, uint8 ``(G, bytes)``: scales and minimums of each group of rows.
    supers: shared, uint8 ``(ceil(R / 256), bytes)``: their second level; None if there is none.
    """

    def __init__(
        self,
        codes: Tensor,
        neurons: Tensor | None,
        records: Tensor,
        supers: Tensor | None,
        grouping: Grouping,
        columns: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(grouping, columns, dtype)
        self.codes, self.neurons, self.records, self.supers = codes, neurons, records, supers
        self.layout = Layout.of_columns(grouping, columns)

    @property
    def planes(self) -> Sequence[Tensor]:
        return (self.codes,) if self.neurons is None else (self.codes, self.neurons)

    @property
    def shared(self) -> Sequence[Tensor]:
        return (self.records,) if self.supers is None else (self.records, self.supers)

    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> "GroupedColumns":
        codes, *neurons = planes
        records, *supers = self.shared if shared is None else shared
        return GroupedColumns(
            codes, neurons[0] if neurons else None, records, supers[0] if supers else None, self.grouping,
            self._columns, self._dtype,
        )  # fmt: skip

    def numbered(self) -> "GroupedColumns":
        if self.neurons is not None:
            return self
        neurons = torch.arange(self.row_count, dtype=torch.int32)
        return self.of((self.codes, neurons))

    def transposed(self, room: Room | None = None) -> Matrix:
        raise NotImplementedError("rows that share scales are already in the form for sums of weighted rows")

    @property
    def is_finite(self) -> bool:
        return _finite_halves(self.records if self.supers is None else self.supers)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        return functional.linear(x, self._plain(0, self.row_count, x.dtype), bias_R)

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        return functional.linear(z, self._plain(0, self.row_count, z.dtype).t(), bias_C)

    def _write(self, at: int, halves: bool, stride: int, first: int, end: int) -> None:
        if _native().griffin_widen_columns(
            at, halves, stride, self.codes.data_ptr(), self.records.data_ptr(), address(self.supers), self.layout,
            address(self.neurons), self.columns, first, end,
        ):  # fmt: skip
            raise MemoryError("no memory to make weights plain")


def _finite_halves(halves: Tensor) -> bool:
    """Whether float16 numbers, given as bytes ``(..., 2 numbers)``, are all finite."""
    return bool((halves.contiguous().view(torch.int16) & 0x7C00 != 0x7C00).all())


def column_records(grouping: Grouping, rows: int) -> tuple[int, int]:
    """Number of group records and of second-level records of a matrix with groups across so many rows."""
    return rows // grouping.size, -(-rows // SUPER) if grouping.two_levels else 0


def _native() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("codes in groups need the compiled library, which was not built")
    return found


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the compiled functions write, for numbers that become ``dtype``."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _room(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread, which its next product reuses."""
    rooms: dict[torch.dtype, Tensor] = _scratch.__dict__.setdefault("rooms", {})
    if dtype not in rooms or rooms[dtype].numel() < rows * columns:
        rooms[dtype] = torch.empty(rows * columns, dtype=dtype)
    return rooms[dtype][: rows * columns].view(rows, columns)
