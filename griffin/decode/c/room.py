"""Memory in which a request's kept neurons are copied next to each other.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept, P matrices of a block without the gate's.
"""

import ctypes

import torch
from torch import Tensor

from griffin.decode.c.description import described
from griffin.decode.c.library import CFeedForward, CProjection
from griffin.model.matrix.grouped import GroupedColumns
from griffin.model.matrix.matrix import Matrix
from griffin.model.memory import untouched
from griffin.model.weights import FeedForwardWeights, Weights
from griffin.neurons import Kept

# Bytes of the largest number in a row.
_ALIGNMENT = 4


class Room:
    """Room for the kept neurons of every layer, up to all neurons."""

    def __init__(self, weights: Weights) -> None:
        blocks = [layer.feed_forward for layer in weights.layers]
        memory = untouched([_bytes_of(block) for block in blocks])
        self._blocks = [_BlockRoom(block, room_N) for block, room_N in zip(blocks, memory, strict=True)]

    def describe(self, kept: Kept, whole: "ctypes.Array[CFeedForward]") -> "ctypes.Array[CFeedForward]":
        """The blocks to which these neurons are copied. The step then reads them there.

        Args:
            whole: the step's blocks with all neurons.
        """
        described = (CFeedForward * len(self._blocks))()
        for number, block in enumerate(self._blocks):
            described[number] = block.describe(kept.layers[number], whole[number].contract.bias)
        return described


class _BlockRoom:
    """The room of one layer: the gate's rows first, then those of the other matrices."""

    def __init__(self, feed_forward: FeedForwardWeights, memory_N: Tensor) -> None:
        self._matrices, self._memory_N = _matrices(feed_forward), memory_N
        self._neurons = feed_forward.contract.row_count
        self._sizes = [_row_size(matrix) for matrix in self._matrices]
        self._scales = [[plane.new_empty(plane.shape) for plane in matrix.planes[1:]] for matrix in self._matrices]
        bias_P = feed_forward.expand.bias
        self._bias = None if bias_P is None else torch.empty(len(bias_P))

    def describe(self, kept_k: Tensor, contract_bias: int | None) -> CFeedForward:
        """The block for these neurons."""
        count = len(kept_k)
        rows = [self._rows(place, count) for place in range(len(self._matrices))]
        contract = rows[-1]
        if isinstance(contract, GroupedColumns) and contract.neurons is not None:
            contract.neurons.copy_(kept_k)
        gate, *up, down = map(described, rows)
        gate_bias, up_bias = (None, None) if self._bias is None else (self._bias, self._bias[count:])
        return CFeedForward(
            CProjection(gate, None if gate_bias is None else gate_bias.data_ptr()),
            CProjection(up[0], None if up_bias is None else up_bias.data_ptr()) if up else CProjection(),
            CProjection(down, contract_bias),
        )

    def _rows(self, place: int, count: int) -> Matrix:
        """The first ``count`` rows of one of the matrices."""
        codes, size = self._matrices[place].planes[0], self._sizes[place]
        start, item = self._neurons * sum(self._sizes[:place]), codes.element_size()
        rows = self._memory_N.view(codes.dtype).as_strided((count, codes.shape[1]), (size // item, 1), start // item)
        return self._matrices[place].of([rows, *(scale[:count] for scale in self._scales[place])])


def _matrices(feed_forward: FeedForwardWeights) -> list[Matrix]:
    """Matrices with a row for each neuron: the gate's, that of its factor if there is one, and the contracting one."""
    return [*(projection.matrix for projection in feed_forward.expanding()), feed_forward.contract.numbered()]


def _row_size(matrix: Matrix) -> int:
    """Bytes from one row's codes to the next row's. Each row begins at a multiple of ``_ALIGNMENT``."""
    codes = matrix.planes[0]
    return -(-codes.shape[1] * codes.element_size() // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(feed_forward: FeedForwardWeights) -> int:
    return feed_forward.contract.row_count * sum(map(_row_size, _matrices(feed_forward)))
