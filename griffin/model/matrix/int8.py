"""Whole numbers from -127 to 127, with one scale for each row."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from griffin.model.matrix.dense import all_finite
from griffin.model.matrix.matrix import Matrix
from griffin.model.memory import Room

LARGEST = 127
# Rows that are widened at once for a product. All rows of a large vocabulary would take as much memory as the model.
ROWS_AT_ONCE = 4096


class _Int8(Matrix):
    """What both kinds share."""

    format = "int8"
    merges = False

    def __init__(self, codes_RC: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of activations and products.
        """
        self.codes_RC, self.scales, self._dtype = codes_RC, scales, dtype

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def columns(self) -> int:
        return self.codes_RC.shape[1]

    @property
    def is_finite(self) -> bool:
        return all_finite(self.scales)


class Int8(_Int8):
    """Two planes: codes int8 ``(R, C)``, and scales fp32 ``(R,)``. A number is its code times its row's scale."""

    @classmethod
    def rounded(cls, numbers_RC: Tensor) -> "Int8":
        """The nearest codes, with scales that represent each row's largest number exactly."""
        codes_RC, scales_R = rounded_rows(numbers_RC)
        return cls(codes_RC, scales_R, numbers_RC.dtype)

    @property
    def planes(self) -> Sequence[Tensor]:
        return self.codes_RC, self.scales

    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> "Int8":
        codes_RC, scales_R = planes
        return Int8(codes_RC, scales_R, self._dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.codes_RC.float() * self.scales[:, None]).to(dtype or self._dtype)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        # Codes are exact in every dtype; only the scale, in fp32, is not.
        parts = [functional.linear(x, codes.to(x.dtype)).float() * scales for codes, scales in self._pieces()]
        y = torch.cat(parts, dim=-1)
        return (y if bias_R is None else y + bias_R.float()).to(x.dtype)

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        weighted = (z.float() * self.scales).to(z.dtype)
        pieces = torch.split(weighted, ROWS_AT_ONCE, dim=-1)
        y = torch.stack([
            (part @ codes.to(z.dtype)).float() for part, (codes, _) in zip(pieces, self._pieces(), strict=True)
        ]).sum(dim=0)  # fmt: skip
        return (y if bias_C is None else y + bias_C.float()).to(z.dtype)

    def transposed(self, room: Room | None = None) -> "Int8Columns":
        turned_CR = (room or Room()).matrix(self.columns, self.row_count, torch.int8)
        return Int8Columns(turned_CR.copy_(self.codes_RC.t()), self.scales, self._dtype)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(self.codes_RC, ROWS_AT_ONCE), torch.split(self.scales, ROWS_AT_ONCE), strict=True)


class Int8Columns(_Int8):
    """The transpose of ``Int8``: a plane, codes int8 ``(R, C)``, and shared by all rows scales fp32 ``(C,)``."""

    @property
    def planes(self) -> Sequence[Tensor]:
        return (self.codes_RC,)

    @property
    def shared(self) -> Sequence[Tensor]:
        return (self.scales,)

    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> "Int8Columns":
        return Int8Columns(planes[0], self.scales if shared is None else shared[0], self._dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.codes_RC.float() * self.scales).to(dtype or self._dtype)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        return functional.linear((x.float() * self.scales).to(x.dtype), self.codes_RC.to(x.dtype), bias_R)

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        y = (z @ self.codes_RC.to(z.dtype)).float() * self.scales
        return (y if bias_C is None else y + bias_C.float()).to(z.dtype)

    def transposed(self, room: Room | None = None) -> Int8:
        return Int8(self.codes_RC.t().contiguous(), self.scales, self._dtype)


def rounded_rows(numbers_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 ``(R, C)`` and scales fp32 ``(R,)`` that represent each row's largest number exactly."""
    numbers_RC = numbers_RC.float()
    scales_R = (numbers_RC.abs().amax(dim=1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    codes_RC = (numbers_RC / scales_R[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return codes_RC.to(torch.int8), scales_R
