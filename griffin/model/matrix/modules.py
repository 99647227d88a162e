"""Where a model's modules keep their matrices.

A projection of the library holds a plain weight. One that was given another format is a ``MatrixLinear``; an embedding,
a ``MatrixEmbedding``. All others see ``Matrix`` only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from griffin.model.matrix.dense import DTYPES, Dense
from griffin.model.matrix.matrix import Matrix


class _MatrixModule(nn.Module):
    """Holds the planes of a matrix as buffers, so that they are moved and shared as buffers are."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self._like, self._count = matrix.of([plane[:0] for plane in matrix.planes]), len(matrix.planes)
        self.put(matrix)

    def put(self, matrix: Matrix) -> None:
        """Have these planes from now on."""
        for number, plane in enumerate(matrix.planes):
            self.register_buffer(f"plane_{number}", plane, persistent=False)

    @property
    def matrix(self) -> Matrix:
        return self._like.of([self.get_buffer(f"plane_{number}") for number in range(self._count)])

    @property
    def weight(self) -> Tensor:
        # The library reads the dtype and device of some modules from there.
        return torch.empty(0, dtype=self._like.dtype, device=self.get_buffer("plane_0").device)


class MatrixLinear(_MatrixModule):
    """A projection. ``by_input``: rows belong to its inputs, not to its outputs."""

    def __init__(self, matrix: Matrix, bias: Tensor | None, *, by_input: bool) -> None:
        super().__init__(matrix)
        self.by_input = by_input
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix.weighted_rows(x, self.bias) if self.by_input else self.matrix.product(x, self.bias)


class MatrixEmbedding(_MatrixModule):
    """A table of which rows are looked up, and multiplied by a factor that the library's own table may have."""

    def __init__(self, matrix: Matrix, scale: float) -> None:
        super().__init__(matrix)
        self.scale = scale
        self.num_embeddings, self.embedding_dim = matrix.shape

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.matrix.rows(ids.flatten()).dense()
        return (rows * self.scale if self.scale != 1 else rows).view(*ids.shape, -1)


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a plain product with a matrix of a known format."""
    if isinstance(module, MatrixLinear):
        return True
    return isinstance(module, nn.Linear | Conv1D) and module.weight.dtype in DTYPES


def by_output(projection: nn.Module) -> Matrix:
    """A projection's matrix with a row for each output: ``(outputs, inputs)``; a view where the module stores it so."""
    if isinstance(projection, MatrixLinear):
        assert not projection.by_input
        return projection.matrix
    return Dense(_weight(projection, transposed=isinstance(projection, Conv1D)))


def by_input(projection: nn.Module) -> Matrix:
    """A projection's matrix with a row for each input: ``(inputs, outputs)``."""
    if isinstance(projection, MatrixLinear):
        assert projection.by_input
        return projection.matrix
    return Dense(_weight(projection, transposed=not isinstance(projection, Conv1D)))


def table(embedding: nn.Module) -> Matrix:
    """Of an embedding: ``(vocabulary, width)``."""
    if isinstance(embedding, _MatrixModule):
        return embedding.matrix
    return Dense(_weight(embedding, transposed=False))


def put_by_output(projection: nn.Module, matrix: Matrix) -> None:
    """Have a projection read this matrix, of its own format and shape, from now on."""
    if isinstance(projection, _MatrixModule):
        projection.put(matrix)
    else:
        numbers = matrix.dense()
        _parameter(projection).data = numbers.t() if isinstance(projection, Conv1D) else numbers


def put_by_input(projection: nn.Module, matrix: Matrix) -> None:
    """Likewise, of a matrix with a row for each input."""
    if isinstance(projection, _MatrixModule):
        projection.put(matrix)
    else:
        numbers = matrix.dense()
        _parameter(projection).data = numbers if isinstance(projection, Conv1D) else numbers.t()


def merged_(projections: Sequence[nn.Module], joined: Matrix) -> None:
    """Have projections with a row for each output read their parts of one matrix."""
    parts = joined.split([by_output(projection).row_count for projection in projections])
    for projection, part in zip(projections, parts, strict=True):
        put_by_output(projection, part)


def matrices(model: nn.Module) -> list[Matrix]:
    """Those of a model that are no parameters; one that two modules share is there once."""
    modules = (module for module in model.modules() if isinstance(module, _MatrixModule))
    return list({weight_key(module): module.matrix for module in modules}.values())


def weight_key(module: nn.Module) -> int:
    """Equal for modules that share their weight."""
    return id(module.get_buffer("plane_0") if isinstance(module, _MatrixModule) else module.weight)


def _weight(module: nn.Module, *, transposed: bool) -> Tensor:
    weight = _parameter(module).detach()
    return weight.t() if transposed else weight


def _parameter(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
