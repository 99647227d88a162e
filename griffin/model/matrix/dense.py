"""Plain numbers: float32, bfloat16 or float16.

Shapes: R rows, C columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from griffin.model.matrix.matrix import Matrix
from griffin.model.memory import Room

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Dense(Matrix):
    """One plane, the numbers ``(R, C)``. Their rows need not be contiguous: a checkpoint may hold the transpose."""

    def __init__(self, numbers_RC: Tensor, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            dtype: of activations and products; by default that of the numbers.
        """
        self.numbers_RC, self._dtype = numbers_RC, dtype or numbers_RC.dtype

    @property
    def format(self) -> str:  # type: ignore[override]
        return str(self.numbers_RC.dtype).removeprefix("torch.")

    @property
    def planes(self) -> Sequence[Tensor]:
        return (self.numbers_RC,)

    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> "Dense":
        return Dense(planes[0], self._dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def columns(self) -> int:
        return self.numbers_RC.shape[1]

    @property
    def is_finite(self) -> bool:
        return all_finite(self.numbers_RC)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.numbers_RC.to(dtype or self._dtype)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        return functional.linear(x, self.numbers_RC.to(x.dtype), bias_R)

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        return functional.linear(z, self.numbers_RC.to(z.dtype).t(), bias_C)

    def transposed(self, room: Room | None = None) -> "Dense":
        if self.device.type != "cpu":
            return Dense(self.numbers_RC.t().contiguous(), self._dtype)
        turned_CR = (room or Room()).matrix(self.columns, self.row_count, self.numbers_RC.dtype)
        return Dense(turned_CR.copy_(self.numbers_RC.t()), self._dtype)


def all_finite(values: Tensor) -> bool:
    # The maximum is enough and makes no copy: it is NaN if any value is.
    return bool(torch.isfinite(torch.stack(values.aminmax())).all()) if values.numel() else True
