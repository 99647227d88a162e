"""The forms of ``--quantize``: plain numbers become bytes with nearly the same values.

The rounded bytes are kept row by row, independent of a matrix's layout in memory.

Shapes: R rows, C columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from griffin.model.checkpoint.gguf_codes import column_sizes, lay_columns, lay_rows, row_sizes
from griffin.model.matrix.grouping import BLOCK, COLUMN_UNIT
from griffin.model.matrix.int8 import Int8, rounded_rows
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.native import library, spread

# Numbers that a thread rounds at once.
NUMBERS_AT_ONCE = 2**18
# Largest float16: scales cannot exceed it.
LARGEST = 65504.0


class Form(ABC):
    """A way to hold a matrix ``(R, C)`` in fewer bytes. R are the outputs of a projection."""

    @abstractmethod
    def fits(self, shape: tuple[int, int], *, by_input: bool) -> bool:
        """Whether a matrix of this shape can have this form; ``by_input``: for sums of weighted columns."""

    @abstractmethod
    def row_bytes(self, columns: int) -> int: ...

    @abstractmethod
    def sizes(self, shape: tuple[int, int], *, by_input: bool) -> list[int]:
        """Bytes of the tensors that ``matrix`` needs."""

    @abstractmethod
    def matrix(
        self, data: Tensor, shape: tuple[int, int], room: Sequence[Tensor], dtype: torch.dtype, *, by_input: bool
    ) -> Matrix:
        """The matrix of these bytes, uint8 ``(R, row_bytes)``; ``by_input``: its transpose, ``(C, R)``."""

    @abstractmethod
    def _round(self, numbers_RC: Tensor, out: Tensor) -> None:
        """Write the bytes of rows in fp32."""

    def rounded(self, numbers_RC: Tensor) -> Tensor:
        """The bytes of plain numbers, uint8 ``(R, row_bytes)``.

        Raises:
            ValueError: a number is infinite, not a number, or too large for float16.
        """
        rows, columns = numbers_RC.shape
        out = torch.empty(rows, self.row_bytes(columns), dtype=torch.uint8)
        at_once = max(1, NUMBERS_AT_ONCE // columns)

        def round_rows(first: int, end: int) -> None:
            for start in range(first, end, at_once):
                part = slice(start, min(end, start + at_once))
                numbers = numbers_RC[part].float().contiguous()
                # Also False for NaN.
                if not bool(numbers.abs().amax() <= LARGEST):
                    raise ValueError("holds numbers that are infinite, not a number, or too large for float16")
                self._round(numbers, out[part])

        spread(rows, 1, round_rows)
        return out


class _Blocks(Form):
    """Blocks of a GGUF type along the rows."""

    def __init__(self, type: GGMLQuantizationType) -> None:
        self.type = type

    def fits(self, shape: tuple[int, int], *, by_input: bool) -> bool:
        return shape[1] % BLOCK == 0 and not (by_input and shape[0] % COLUMN_UNIT)

    def row_bytes(self, columns: int) -> int:
        return columns // BLOCK * GGML_QUANT_SIZES[self.type][1]

    def sizes(self, shape: tuple[int, int], *, by_input: bool) -> list[int]:
        return column_sizes(self.type, (shape[1], shape[0])) if by_input else row_sizes(self.type, shape)

    def matrix(
        self, data: Tensor, shape: tuple[int, int], room: Sequence[Tensor], dtype: torch.dtype, *, by_input: bool
    ) -> Matrix:
        if by_input:
            return lay_columns(data.numpy(), self.type, (shape[1], shape[0]), list(room), dtype)
        return lay_rows(data.numpy(), self.type, shape, list(room), dtype)


class FourBits(_Blocks):
    """Blocks of 32 codes with a scale and a minimum, chosen for the least squared error: Q4_1."""

    def __init__(self) -> None:
        super().__init__(GGMLQuantizationType.Q4_1)

    def _round(self, numbers_RC: Tensor, out: Tensor) -> None:
        native = library()
        assert native is not None
        native.griffin_round_q4_1(out.data_ptr(), numbers_RC.data_ptr(), numbers_RC.numel() // BLOCK)


class EightBits(_Blocks):
    """Blocks of 32 codes with a scale by which the largest is nearly exact: Q8_0."""

    def __init__(self) -> None:
        super().__init__(GGMLQuantizationType.Q8_0)

    def _round(self, numbers_RC: Tensor, out: Tensor) -> None:
        blocks = numbers_RC.view(-1, BLOCK)
        codes, exact = rounded_rows(blocks)
        scales = exact.half()
        codes = (blocks / scales.float()[:, None]).nan_to_num_(0, 0, 0).round_().clamp_(-127, 127).to(torch.int8)
        out.copy_(torch.cat([scales[:, None].view(torch.uint8), codes.view(torch.uint8)], dim=1).view(out.shape))


class EightBitRows(Form):
    """Codes of 8 bits after a scale in fp32 for the whole row: ``Int8``."""

    def fits(self, shape: tuple[int, int], *, by_input: bool) -> bool:
        return not by_input

    def row_bytes(self, columns: int) -> int:
        return 4 + columns

    def sizes(self, shape: tuple[int, int], *, by_input: bool) -> list[int]:
        return [shape[0] * shape[1], shape[0] * 4]

    def matrix(
        self, data: Tensor, shape: tuple[int, int], room: Sequence[Tensor], dtype: torch.dtype, *, by_input: bool
    ) -> Matrix:
        codes_RC, scales_R4 = room[0].view(shape), room[1].view(shape[0], 4)
        scales_R4.copy_(data[:, :4])
        codes_RC.copy_(data[:, 4:])
        return Int8(codes_RC.view(torch.int8), room[1].view(torch.float32), dtype)

    def _round(self, numbers_RC: Tensor, out: Tensor) -> None:
        codes_RC, scales_R = rounded_rows(numbers_RC)
        out[:, :4] = scales_R[:, None].view(torch.uint8)
        out[:, 4:] = codes_RC.view(torch.uint8)
