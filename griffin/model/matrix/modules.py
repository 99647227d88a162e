"""The modules of a model that hold its matrices.

A projection of transformers holds a plain weight. A projection with another format is a ``MatrixLinear``; an embedding
is a ``MatrixEmbedding``. Other code only sees ``Matrix``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from griffin.model.matrix.dense import DTYPES, Dense
from griffin.model.matrix.matrix import Matrix


class _MatrixModule(nn.Module):
    """Holds the tensors of a matrix as buffers, so that they are moved and shared like buffers."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        # Not views, because a copy of this module would copy their whole memory.
        self._like = matrix.of(
            *([t.new_empty(0, *t.shape[1:]) for t in kind] for kind in (matrix.planes, matrix.shared))
        )
        self._planes = [f"plane_{number}" for number in range(len(matrix.planes))]
        self._shared = [f"shared_{number}" for number in range(len(matrix.shared))]
        self.put(matrix)

    def put(self, matrix: Matrix) -> None:
        """Hold these tensors from here on."""
        tensors = (*matrix.planes, *matrix.shared)
        for name, tensor in zip((*self._planes, *self._shared), tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def matrix(self) -> Matrix:
        planes, shared = ([self.get_buffer(name) for name in names] for names in (self._planes, self._shared))
        return self._like.of(planes, shared)

    @property
    def weight(self) -> Tensor:
        # transformers reads the dtype and device of some modules from this attribute.
        return torch.empty(0, dtype=self._like.dtype, device=self.get_buffer("plane_0").device)


class MatrixLinear(_MatrixModule):
    """A projection. ``by_input``: rows belong to its inputs, not to its outputs."""

    def __init__(self, matrix: Matrix, bias: Tensor | None, *, by_input: bool) -> None:
        super().__init__(matrix)
        self.by_input = by_input
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Recomputed.apply(x, self.matrix, self.bias, self.by_input)  # type: ignore[no-untyped-call]
            return y
        return multiplied(x, self.matrix, self.bias, by_input=self.by_input)


def multiplied(x: Tensor, matrix: Matrix, bias: Tensor | None, *, by_input: bool) -> Tensor:
    """The product. ``by_input``: rows belong to inputs, and are weighted by x and summed up; else multiplied by x."""
    return matrix.weighted_rows(x, bias) if by_input else matrix.product(x, bias)


class _Recomputed(torch.autograd.Function):
    """A product whose derivative computes the plain numbers again, because their memory is reused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, bias: Tensor | None, by_input: bool) -> Tensor:
        ctx.matrix, ctx.by_input = matrix, by_input
        return multiplied(x, matrix, bias, by_input=by_input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return multiplied(gradient, ctx.matrix, None, by_input=not ctx.by_input), None, None, None


class MatrixEmbedding(_MatrixModule):
    """A table from which rows are looked up, times a factor that the original table may have."""

    def __init__(self, matrix: Matrix, scale: float) -> None:
        super().__init__(matrix)
        self.scale = scale
        self.num_embeddings, self.embedding_dim = matrix.shape

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.matrix.rows(ids.flatten()).dense()
        return (rows * self.scale if self.scale != 1 else rows).view(*ids.shape, -1)


def put_(model: PreTrainedModel, path: str, matrix: Matrix, *, by_input: bool) -> None:
    """Put a matrix into a model's projection or embedding; if the head is the same as the embedding, there too.

    Args:
        by_input: the matrix has a row for each input of the projection.
    """
    module, embedding, head = model.get_submodule(path), model.get_input_embeddings(), model.get_output_embeddings()
    if module is not embedding:
        model.set_submodule(path, _linear(module, matrix, by_input=by_input))
        return
    if head.weight is embedding.weight:
        model.set_output_embeddings(_linear(head, matrix, by_input=False))
    model.set_input_embeddings(MatrixEmbedding(matrix, float(getattr(embedding, "embed_scale", 1.0))))


def takes_matrix(model: PreTrainedModel, module: nn.Module) -> bool:
    """Whether ``put_`` can give this module a matrix: it is a projection or the embedding."""
    return isinstance(module, nn.Linear) or module is model.get_input_embeddings()


def _linear(module: nn.Module, matrix: Matrix, *, by_input: bool) -> MatrixLinear:
    bias = module.bias
    return MatrixLinear(matrix, bias.detach() if isinstance(bias, Tensor) else None, by_input=by_input)


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a plain product with a matrix of a known format."""
    if isinstance(module, MatrixLinear):
        return True
    return isinstance(module, nn.Linear | Conv1D) and module.weight.dtype in DTYPES


def by_output(projection: nn.Module) -> Matrix:
    """A projection's matrix with a row for each output: ``(outputs, inputs)``; a view if the module stores it so."""
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
    """The matrix of an embedding: ``(vocabulary, width)``."""
    if isinstance(embedding, _MatrixModule):
        return embedding.matrix
    return Dense(_weight(embedding, transposed=False))


def put_by_output(projection: nn.Module, matrix: Matrix) -> None:
    """Make a projection use this matrix, of the same format and shape as its own."""
    if isinstance(projection, _MatrixModule):
        projection.put(matrix)
    else:
        numbers = matrix.dense()
        _parameter(projection).data = numbers.t() if isinstance(projection, Conv1D) else numbers


def put_by_input(projection: nn.Module, matrix: Matrix) -> None:
    """Like ``put_by_output``, for a matrix with a row for each input."""
    if isinstance(projection, _MatrixModule):
        projection.put(matrix)
    else:
        numbers = matrix.dense()
        _parameter(projection).data = numbers if isinstance(projection, Conv1D) else numbers.t()


def merged_(projections: Sequence[nn.Module], joined: Matrix) -> None:
    """Make projections with a row for each output use parts of one matrix."""
    parts = joined.split([by_output(projection).row_count for projection in projections])
    for projection, part in zip(projections, parts, strict=True):
        put_by_output(projection, part)


def named_matrices(model: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """The matrices of a model that are not parameters, by the names of their modules."""
    for name, module in model.named_modules():
        if isinstance(module, _MatrixModule):
            yield name, module.matrix


def matrices(model: nn.Module) -> list[Matrix]:
    """The matrices of a model that are not parameters; a matrix shared by two modules appears once."""
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
