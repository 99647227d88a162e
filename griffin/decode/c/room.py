"""Room for a request's kept neurons, next to each other.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept, P matrices of a block without the gate's.
"""

import ctypes

import torch
from torch import Tensor

from griffin.decode.c.description import described
from griffin.decode.c.library import CFeedForward, CProjection
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.matrix import Matrix
from griffin.model.memory import untouched
from griffin.model.weights import FeedForwardWeights, Weights
from griffin.neurons import Kept

# Of the largest number in a row, in bytes.
_ALIGNMENT = 4


class Room:
    """Room for the kept neurons of every layer, at most all, and for what stands for the others."""

    def __init__(self, weights: Weights) -> None:
        blocks = [layer.feed_forward for layer in weights.layers]
        memory = untouched([_bytes_of(block) for block in blocks])
        self._blocks = [_BlockRoom(block, room_N) for block, room_N in zip(blocks, memory, strict=True)]
        self._own_bias_LD = weights.contract_bias()
        self._bias_LD = self._own_bias_LD.clone()

    def describe(self, kept: Kept, whole: "ctypes.Array[CFeedForward]") -> "ctypes.Array[CFeedForward]":
        """Where these neurons are to be copied to, and read then.

        Args:
            whole: all neurons, as the step has them.
        """
        described = (CFeedForward * len(self._blocks))()
        for number, block in enumerate(self._blocks):
            bias = whole[number].contract.bias
            if kept.offset_LD is not None:
                torch.add(self._own_bias_LD[number], kept.offset_LD[number], out=self._bias_LD[number])
                bias = self._bias_LD[number].data_ptr()
            described[number] = block.describe(number, kept, bias)
        return described

    def which(self, kept: Kept) -> Tensor:
        """The neurons in the order in which they are held, one layer after the other, int64."""
        return torch.cat([block.ordered(kept, number) for number, block in enumerate(self._blocks)])

    def correct(self, kept: Kept) -> None:
        """Once the kept rows are there: add to them what they can tell of the other neurons."""
        if kept.correction is not None:
            for number, block in enumerate(self._blocks):
                kept.correction.add_to_(number, block.contract.dense(), block.order(kept, number))


class _BlockRoom:
    """One layer's: the gate's rows first, then those of the other matrices.

    Of neurons that act on some tokens only, the other rows lie side by side, the most often acting first: each neuron's
    are read in one go. Where neighbours share scales, they stay neighbours instead.

    contract: the contracting rows of the neurons at hand.
    """

    contract: Matrix

    def __init__(self, feed_forward: FeedForwardWeights, memory_N: Tensor) -> None:
        self._matrices, self._memory_N = _matrices(feed_forward), memory_N
        self._grouped = any(isinstance(matrix, GroupedRows | GroupedColumns) for matrix in self._matrices)
        self._neurons = feed_forward.contract.row_count
        self._sizes = [_row_size(matrix) for matrix in self._matrices]
        self._scales = [[plane.new_empty(plane.shape) for plane in matrix.planes[1:]] for matrix in self._matrices]
        bias_P = feed_forward.expand.bias
        self._bias = None if bias_P is None else torch.empty(len(bias_P))
        # What gates must exceed, and what neurons at rest give.
        self._acting: tuple[Tensor, ...] = ()

    def order(self, kept: Kept, number: int) -> Tensor | None:
        """The order in which a layer's neurons are held, as indices into the kept ones; None if it is the same."""
        return None if kept.acting is None or self._grouped else kept.acting.order[number]

    def ordered(self, kept: Kept, number: int) -> Tensor:
        """A layer's neurons in the order in which they are held."""
        order_k, kept_k = self.order(kept, number), kept.layers[number]
        return kept_k if order_k is None else kept_k[order_k]

    def describe(self, number: int, kept: Kept, contract_bias: int | None) -> CFeedForward:
        """The block of a layer, for these neurons."""
        count, beside = kept.counts[number], self.order(kept, number) is not None
        rows = [self._rows(place, count, beside) for place in range(len(self._matrices))]
        whole, contract = self._matrices[-1], rows[-1]
        if kept.correction is not None and not (isinstance(whole, Dense) and whole.is_plain):
            # Codes cannot be corrected; the rows are widened for this request.
            rows[-1] = Dense(whole.rows(self.ordered(kept, number)).dense())
        elif isinstance(contract, GroupedColumns) and contract.neurons is not None:
            contract.neurons.copy_(self.ordered(kept, number))
        self.contract = rows[-1]
        gate, *up, down = map(described, rows)
        gate_bias, up_bias = (None, None) if self._bias is None else (self._bias, self._bias[count:])
        block = CFeedForward(
            CProjection(gate, None if gate_bias is None else gate_bias.data_ptr()),
            CProjection(up[0], None if up_bias is None else up_bias.data_ptr()) if up else CProjection(),
            CProjection(down, contract_bias),
        )
        if kept.acting is not None:
            order_k = self.order(kept, number)
            values = (kept.acting.thresholds[number], kept.acting.resting[number])
            # Copies: the selection's own may go while its neurons are still in use.
            self._acting = tuple((v_k if order_k is None else v_k[order_k]).float().clone() for v_k in values)
            block.thresholds, block.resting = (values_k.data_ptr() for values_k in self._acting)
        return block

    def _rows(self, place: int, count: int, beside: bool) -> Matrix:
        """Where the first so many rows of one of the matrices are."""
        codes, size = self._matrices[place].planes[0], self._sizes[place]
        start, between = 0, size
        if place:
            before, start = sum(self._sizes[1:place]), self._neurons * self._sizes[0]
            start += before if beside else count * before
            between = sum(self._sizes[1:]) if beside else size
        item = codes.element_size()
        rows = self._memory_N.view(codes.dtype).as_strided((count, codes.shape[1]), (between // item, 1), start // item)
        return self._matrices[place].of([rows, *(scale[:count] for scale in self._scales[place])])


def _matrices(feed_forward: FeedForwardWeights) -> list[Matrix]:
    """By neuron: the gate's, what it is multiplied by if there is such, and the contracting one."""
    contract = feed_forward.contract
    if isinstance(contract, GroupedColumns):
        contract = contract.numbered()
    return [*(projection.matrix for projection in feed_forward.expanding()), contract]


def _row_size(matrix: Matrix) -> int:
    """Bytes from a row's codes to the next row's; whatever their type, each begins at a multiple of its size."""
    codes = matrix.planes[0]
    return -(-codes.shape[1] * codes.element_size() // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(feed_forward: FeedForwardWeights) -> int:
    return feed_forward.contract.row_count * sum(map(_row_size, _matrices(feed_forward)))
