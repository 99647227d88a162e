"""Memory that is asked for in one piece, in huge pages where the system has them."""

import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate

import torch
from torch import Tensor

# Of the processor's caches, in bytes.
LINE = 64
# Linux's MAP_NORESERVE, nameless in Python 3.11: one piece may be promised as much as many small ones would be.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


def untouched(sizes: Sequence[int]) -> list[Tensor]:
    """Bytes, uint8 ``(size,)`` for each size, in storages of their own; they take no memory before they are written to.

    Steps hop between rows. With pages of 4 KiB they take up to a fifth longer, by chance of where the rows lie.

    Raises:
        MemoryError: the system does not promise as much.
    """
    starts = list(accumulate((-(-size // LINE) * LINE for size in sizes), initial=0))
    try:
        memory = mmap.mmap(-1, max(starts[-1], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        raise MemoryError(f"no {starts[-1] / 1e9:.1f} GB of memory: {error.strerror}") from error
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return [
        torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
        if size
        else torch.empty(0, dtype=torch.uint8)
        for start, size in zip(starts[:-1], sizes, strict=True)
    ]


def roomy(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """An empty matrix ``(rows, columns)`` in such memory, on the host."""
    return untouched([rows * columns * dtype.itemsize])[0].view(dtype).view(rows, columns)
