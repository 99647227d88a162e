"""Matrix: the interface through which the rest of the library uses a weight.

Shapes: R rows, C columns, T tokens, k chosen rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar

import torch
from torch import Tensor

from griffin.model.memory import Room


class Matrix(ABC):
    """R rows of C numbers. Rows are what is gathered: in a feed-forward weight, a row belongs to one neuron.

    A matrix consists of planes: tensors whose first dimension is R. Their meaning depends on the format; all of them
    can be cut, joined and gathered by row. Neighbouring rows may also share tensors.
    """

    # The format's name in the C step.
    format: str
    # Whether matrices that are multiplied by the same x may be copied into one.
    merges = True

    @property
    @abstractmethod
    def planes(self) -> Sequence[Tensor]:
        """Codes first; each ``(R, ...)``."""

    @property
    def shared(self) -> Sequence[Tensor]:
        """Tensors of all rows together. A product reads them completely, whichever rows it uses."""
        return ()

    @abstractmethod
    def of(self, planes: Sequence[Tensor], shared: Sequence[Tensor] | None = None) -> Self:
        """A matrix of the same format with other planes; ``shared`` None: the tensors of this one."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of ``dense`` and of products."""

    @property
    @abstractmethod
    def columns(self) -> int: ...

    @abstractmethod
    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The numbers, ``(R, C)``, in ``dtype`` or the matrix's own. A view if nothing has to be computed."""

    @abstractmethod
    def product(self, x: Tensor, bias_R: Tensor | None = None) -> Tensor:
        """Rows times x, plus the bias: ``(..., C)`` to ``(..., R)``."""

    @abstractmethod
    def weighted_rows(self, z: Tensor, bias_C: Tensor | None = None) -> Tensor:
        """The sum of the rows weighted by z, plus the bias: ``(..., R)`` to ``(..., C)``."""

    @property
    def row_count(self) -> int:
        return len(self.planes[0])

    @property
    def shape(self) -> tuple[int, int]:
        return self.row_count, self.columns

    @property
    def device(self) -> torch.device:
        return self.planes[0].device

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.planes, *self.shared))

    @property
    def code_bytes(self) -> int:
        """Bytes of its numbers' codes, without scales."""
        return self.planes[0].nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all planes, without shared tensors. All rows have the same size."""
        return sum(plane.nbytes for plane in self.planes) // max(1, self.row_count)

    def numbered(self) -> Self:
        """The same matrix; if rows share tensors, with a plane that numbers the rows, so that rows can be moved."""
        return self

    def rows(self, index_k: Tensor) -> Self:
        """A copy of the rows with these indices, int64 ``(k,)``."""
        return self.of([plane.index_select(0, index_k.to(plane.device)) for plane in self.numbered().planes])

    def part(self, first: int, end: int) -> Self:
        """A view of the rows from ``first`` up to ``end``."""
        return self.of([plane[first:end] for plane in self.numbered().planes])

    def split(self, sizes: Sequence[int]) -> list[Self]:
        """Views of successive rows, so many in each."""
        cut = (torch.split(plane, list(sizes)) for plane in self.numbered().planes)
        return [self.of(planes) for planes in zip(*cut, strict=True)]

    def room(self, count: int, device: torch.device | None = None) -> Self:
        """An empty matrix with ``count`` rows."""
        planes, place = self.numbered().planes, device or self.device
        return self.of([torch.empty((count, *p.shape[1:]), dtype=p.dtype, device=place) for p in planes])

    def fill_(self, source: Self, index_k: Tensor) -> None:
        """Fill the k rows of this matrix with the source's rows of these indices."""
        for own, theirs in zip(self.planes, source.numbered().planes, strict=True):
            torch.index_select(theirs, 0, index_k, out=own)

    def contiguous(self) -> Self:
        """The matrix with contiguous rows in order; itself if it is so already."""
        if all(plane.is_contiguous() for plane in self.planes):
            return self
        return self.of([plane.contiguous() for plane in self.planes])

    @property
    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite; the factors of the codes tell it."""

    @abstractmethod
    def transposed(self, room: Room | None = None) -> "Matrix":
        """The transpose ``(C, R)`` with the same values, in a format for weighted rows.

        Args:
            room: memory for the result; by default it gets its own.
        """

    def row_norms(self) -> Tensor:
        """fp32 ``(R,)``."""
        norms_R: Tensor = torch.linalg.vector_norm(self.dense(), dim=1, dtype=torch.float32)
        return norms_R

    def column_norms(self) -> Tensor:
        """fp32 ``(C,)``."""
        norms_C: Tensor = torch.linalg.vector_norm(self.dense(), dim=0, dtype=torch.float32)
        return norms_C

    def to(self, device: torch.device) -> Self:
        planes, shared = ([tensor.to(device) for tensor in tensors] for tensors in (self.planes, self.shared))
        return self.of(planes, shared)


M = TypeVar("M", bound=Matrix)


def joined(parts: Sequence[M]) -> M:
    """One matrix with the rows of several; a view of their memory if they are adjacent already."""
    if len(parts) == 1:
        return parts[0]
    planes = list(zip(*(part.planes for part in parts), strict=True))
    if all(map(_adjacent, planes)):
        count = sum(part.row_count for part in parts)
        return parts[0].of([first.as_strided((count, *first.shape[1:]), first.stride()) for first, *_ in planes])
    return parts[0].of([torch.cat(plane) for plane in planes])


def _adjacent(planes: Sequence[Tensor]) -> bool:
    """Whether each plane begins where the previous one ends, in one storage."""
    if any(plane.untyped_storage().data_ptr() != planes[0].untyped_storage().data_ptr() for plane in planes):
        return False
    starts = [plane.storage_offset() for plane in planes]
    ends = [plane.storage_offset() + plane.numel() for plane in planes]
    return all(plane.is_contiguous() for plane in planes) and starts[1:] == ends[:-1]
