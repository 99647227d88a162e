"""Whole numbers of 4, 6 or 8 bits, with a scale for each group of neighbours: what GGUF files hold.

Where rows are multiplied by x, groups lie along the rows (``GroupedRows``). Where weighted rows are summed up, they lie
across rows, of neighbours in one column (``GroupedColumns``): a file holds these matrices the other way round.

Products run in the activations' dtype, over a part of the matrix at a time that is made plain in memory used again. The
decode step has products of its own, on the codes.

Shapes: R rows, C columns, G groups of rows.
"""

import ctypes
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from griffin.model.matrix.grouping import SUPER, Grouping, Layout
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.native import address, library, spread

# Numbers that are made plain at once for a product: 16 MB in bfloat16. With fewer, products take longer.
NUMBERS_AT_ONCE = 2**23

_scratch = threading.local()


class GroupedRows(Matrix):
    """One plane, records uint8 ``(R, bytes)``: a row's codes, then its scales, minimums and second level."""

    merges = False

    def __init__(self, records: Tensor, grouping: Grouping, columns: int, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of activations and products.
        """
        self.records, self.grouping, self._columns, self._dtype = records, grouping, columns, dtype
        self.layout = Layout.of_rows(grouping, columns)

    @property
    def format(self) -> str:  # type: ignore[override]
        return self.grouping.name

    @property
    def planes(self) -> Sequence[Tensor]:
        return (self.records,)

    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> "GroupedRows":
        return GroupedRows(planes[0], self.grouping, self._columns, self._dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def columns(self) -> int:
        return self._columns

    @property
    def is_finite(self) -> bool:
        start = self.layout.supers if self.grouping.two_levels else self.layout.scales
        return _finite_halves(self.records[:, start : start + self.grouping.half_bytes(self.columns)])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        wanted = dtype or self._dtype
        out = torch.empty(self.row_count, self.columns, dtype=_computed(wanted))
        self._widen(out, 0)
        return out.to(wanted)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        parts = [functional.linear(x, part) for part in self._parts(x.dtype)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if bias_R is None else y + bias_R

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        return functional.linear(z, self.dense(z.dtype).t(), bias_C)

    def _parts(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Some rows at a time, ``(rows, C)``; each good until the next one."""
        at_once = max(1, NUMBERS_AT_ONCE // self.columns)
        for first in range(0, self.row_count, at_once):
            part = _room(min(at_once, self.row_count - first), self.columns, _computed(dtype))
            self._widen(part, first)
            yield part.to(dtype)

    def _widen(self, out: Tensor, first: int) -> None:
        native, halves = _native(), out.dtype == torch.bfloat16
        row, stride = out.stride(0) * out.element_size(), out.stride(0)

        def widen(start: int, end: int) -> None:
            native.griffin_widen_rows(
                out.data_ptr() + start * row, halves, stride, self.records.data_ptr(), self.layout, self.columns,
                first + start, first + end,
            )  # fmt: skip

        spread(len(out), 1, widen)


class GroupedColumns(Matrix):
    """Rows that share their scales with neighbours.

    codes: plane uint8 ``(R, bytes)``.
    neurons: plane int32 ``(R,)``: which row of the whole matrix each is; None where they are all.
    records: shared, uint8 ``(G, bytes)``: scales and minimums of each group of rows.
    supers: shared, uint8 ``(ceil(R / 256), bytes)``: their second level; None where there is none.
    """

    merges = False

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
        self.codes, self.neurons, self.records, self.supers = codes, neurons, records, supers
        self.grouping, self._columns, self._dtype = grouping, columns, dtype
        self.layout = Layout.of_columns(grouping, columns)

    @property
    def format(self) -> str:  # type: ignore[override]
        return self.grouping.name

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

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def columns(self) -> int:
        return self._columns

    def numbered(self) -> "GroupedColumns":
        """The same with a plane of row numbers, so that rows can be gathered."""
        if self.neurons is not None:
            return self
        neurons = torch.arange(self.row_count, dtype=torch.int32)
        return self.of((self.codes, neurons))

    def rows(self, index_k: Tensor) -> "GroupedColumns":
        numbered = self.numbered()
        return self.of([plane.index_select(0, index_k.to(plane.device)) for plane in numbered.planes])

    def room(self, count: int, device: torch.device | None = None) -> "GroupedColumns":
        return super(GroupedColumns, self.numbered()).room(count, device)

    def fill_(self, source: "GroupedColumns", index_k: Tensor) -> None:
        super().fill_(source.numbered(), index_k)

    def part(self, first: int, end: int) -> "GroupedColumns":
        return self.of([plane[first:end] for plane in self.numbered().planes])

    def split(self, sizes: Sequence[int]) -> "list[GroupedColumns]":
        return super(GroupedColumns, self.numbered()).split(sizes)

    @property
    def is_finite(self) -> bool:
        return _finite_halves(self.records if self.supers is None else self.supers)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        wanted = dtype or self._dtype
        out = torch.empty(self.row_count, self.columns, dtype=_computed(wanted))
        self._widen(out)
        return out.to(wanted)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        return functional.linear(x, self._plain(x.dtype), bias_R)

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        return functional.linear(z, self._plain(z.dtype).t(), bias_C)

    def _plain(self, dtype: torch.dtype) -> Tensor:
        """All numbers ``(R, C)``, good until the next product."""
        room = _room(self.row_count, self.columns, _computed(dtype))
        self._widen(room)
        return room.to(dtype)

    def _widen(self, out: Tensor) -> None:
        native, halves = _native(), out.dtype == torch.bfloat16
        row, stride = out.stride(0) * out.element_size(), out.stride(0)

        def widen(first: int, end: int) -> None:
            native.griffin_widen_columns(
                out.data_ptr() + first * row, halves, stride, self.codes.data_ptr(), self.records.data_ptr(),
                address(self.supers), self.layout, address(self.neurons), self.columns, first, end,
            )  # fmt: skip

        spread(len(out), 1, widen)


def _finite_halves(halves: Tensor) -> bool:
    """Of float16 numbers as bytes ``(..., 2 numbers)``."""
    return bool((halves.contiguous().view(torch.int16) & 0x7C00 != 0x7C00).all())


def column_records(grouping: Grouping, rows: int) -> tuple[int, int]:
    """How many records of groups, and of the second level, a matrix with groups across so many rows has."""
    return rows // grouping.size, -(-rows // SUPER) if grouping.two_levels else 0


def _native() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("codes in groups need the compiled library, which was not built")
    return found


def _computed(dtype: torch.dtype) -> torch.dtype:
    """What the compiled functions write, for numbers that become this dtype."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _room(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread, used again by its next product."""
    rooms: dict[torch.dtype, Tensor] = _scratch.__dict__.setdefault("rooms", {})
    if dtype not in rooms or rooms[dtype].numel() < rows * columns:
        rooms[dtype] = torch.empty(rows * columns, dtype=dtype)
    return rooms[dtype][: rows * columns].view(rows, columns)
