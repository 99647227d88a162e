"""Plain numbers: float32, bfloat16 or float16."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from griffin.model.matrix.matrix import Matrix

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Dense(Matrix):
    """One plane, the numbers ``(R, C)``. Their rows need not be contiguous: a checkpoint may hold the transpose."""

    def __init__(self, numbers_RC: Tensor) -> None:
        self.numbers_RC = numbers_RC

    @property
    def format(self) -> str:  # type: ignore[override]
        return str(self.numbers_RC.dtype).removeprefix("torch.")

    @property
    def planes(self) -> Sequence[Tensor]:
        return (self.numbers_RC,)

    def of(self, planes: Sequence[Tensor]) -> "Dense":
        return Dense(*planes)

    @property
    def dtype(self) -> torch.dtype:
        return self.numbers_RC.dtype

    @property
    def columns(self) -> int:
        return self.numbers_RC.shape[1]

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.numbers_RC if dtype is None else self.numbers_RC.to(dtype)

    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        return functional.linear(x, self.numbers_RC, bias_R)

    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        return functional.linear(z, self.numbers_RC.t(), bias_C)
