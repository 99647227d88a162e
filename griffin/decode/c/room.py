"""Room for a request's kept neurons, next to each other.

Shapes: L layers, D model width, F feed-forward neurons, k of them kept, P matrices of a block without the gate's.
"""

import ctypes
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate

import torch
from torch import Tensor

from griffin.decode.c.description import described
from griffin.decode.c.library import CFeedForward, CProjection
from griffin.model.matrix.dense import Dense
from griffin.model.matrix.matrix import Matrix
from griffin.model.weights import FeedForwardWeights, Weights
from griffin.neurons import Kept

# Of the processor's caches, in bytes.
_LINE = 64
# Of the largest number in a row, in bytes.
_ALIGNMENT = 4
# Linux's MAP_NORESERVE, nameless in Python 3.11: one piece may be promised as much as many small ones would be.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class Room:
    """Room for the kept neurons of every layer, at most all, and for what stands for the others."""

    def __init__(self, weights: Weights) -> None:
        blocks = [layer.feed_forward for layer in weights.layers]
        memory = _untouched([_bytes_of(block) for block in blocks])
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

    def correct(self, kept: Kept) -> None:
        """Once the kept rows are there: add to them what they can tell of the other neurons."""
        if kept.correction is not None:
            for number, block in enumerate(self._blocks):
                order_k = kept.acting.order[number] if kept.acting else None
                kept.correction.add_to_(number, block.contract.dense(), order_k)


class _BlockRoom:
    """One layer's: the gate's rows first, then those of the other matrices.

    Of neurons that act on some tokens only, the other rows lie side by side: each neuron's are read in one go.

    contract: the contracting rows of the neurons at hand.
    """

    contract: Matrix

    def __init__(self, feed_forward: FeedForwardWeights, memory_N: Tensor) -> None:
        self._matrices, self._memory_N = _matrices(feed_forward), memory_N
        self._neurons = feed_forward.contract.row_count
        self._sizes = [_row_size(matrix) for matrix in self._matrices]
        self._scales = [[plane.new_empty(plane.shape) for plane in matrix.planes[1:]] for matrix in self._matrices]
        bias_P = feed_forward.expand.bias
        self._bias = None if bias_P is None else torch.empty(len(bias_P))
        # What gates must exceed, and what neurons at rest give.
        self._acting: tuple[Tensor, ...] = ()

    def describe(self, number: int, kept: Kept, contract_bias: int | None) -> CFeedForward:
        """The block of a layer, for these neurons."""
        count, beside = kept.counts[number], kept.acting is not None
        rows = [self._rows(place, count, beside) for place in range(len(self._matrices))]
        whole = self._matrices[-1]
        if kept.correction is not None and not isinstance(whole, Dense):
            # Codes cannot be corrected; the rows are widened for this request.
            rows[-1] = Dense(whole.rows(ordered(kept, number)).dense())
        self.contract = rows[-1]
        gate, *up, down = (described(matrix.planes, matrix.format, matrix.columns) for matrix in rows)
        gate_bias, up_bias = (None, None) if self._bias is None else (self._bias, self._bias[count:])
        block = CFeedForward(
            CProjection(gate, None if gate_bias is None else gate_bias.data_ptr()),
            CProjection(up[0], None if up_bias is None else up_bias.data_ptr()) if up else CProjection(),
            CProjection(down, contract_bias),
        )
        if kept.acting is not None:
            order_k = kept.acting.order[number]
            values = (kept.acting.thresholds[number], kept.acting.resting[number])
            # Copies: the selection's own may go while its neurons are still in use.
            self._acting = tuple(values_k[order_k].float().contiguous() for values_k in values)
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


def ordered(kept: Kept, number: int) -> Tensor:
    """A layer's neurons in the order in which the step holds them."""
    kept_k = kept.layers[number]
    return kept_k if kept.acting is None else kept_k[kept.acting.order[number]]


def _matrices(feed_forward: FeedForwardWeights) -> list[Matrix]:
    """By neuron: the gate's, what it is multiplied by if there is such, and the contracting one."""
    neurons = feed_forward.contract.row_count
    return [*feed_forward.expand.matrix.split([neurons] * (1 + feed_forward.gated)), feed_forward.contract]


def _row_size(matrix: Matrix) -> int:
    """Bytes from a row's codes to the next row's; whatever their type, each begins at a multiple of its size."""
    codes = matrix.planes[0]
    return -(-codes.shape[1] * codes.element_size() // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(feed_forward: FeedForwardWeights) -> int:
    return feed_forward.contract.row_count * sum(map(_row_size, _matrices(feed_forward)))


def _untouched(sizes: Sequence[int]) -> list[Tensor]:
    """Bytes that take no memory before they are written to; then in huge pages, where the system has them.

    The step hops between rows. With pages of 4 KiB it takes up to 10 % longer, by chance of where the rows lie.

    Raises:
        MemoryError: the system does not promise as much.
    """
    starts = list(accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0))
    try:
        memory = mmap.mmap(-1, starts[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        raise MemoryError(f"no {starts[-1] / 1e9:.1f} GB for kept neurons: {error.strerror}") from error
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return [
        torch.frombuffer(memory, dtype=torch.uint8, count=-(-size // _LINE) * _LINE, offset=start)
        for size, start in zip(sizes, starts[:-1], strict=True)
    ]
