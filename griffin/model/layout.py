"""The layout of FF weights in memory: each neuron is one contiguous row.

Shapes: D model width, F feed-forward neurons.
"""

from collections.abc import Sequence

from griffin.model.families import FeedForward
from griffin.model.matrix.modules import by_output, put_by_input, put_by_output


def store_by_neuron_(blocks: Sequence[FeedForward]) -> None:
    """Lay out every FF weight in place so that one neuron is one contiguous row; shapes stay.

    A checkpoint stores contracting weights ``(D, F)`` by rows. Gathering their columns is 2 to 14 times slower than
    gathering rows. The product with the transposed form takes between 20 % less and 30 % more time (AMD EPYC with
    AVX512-BF16, 2 threads, fp32 and bf16, D 576 and 2048).
    """
    for block in blocks:
        for projection in block.expand:
            put_by_output(projection, by_output(projection).contiguous())
        put_by_input(block.contract, block.down.contiguous())
