"""Memory: large pieces in huge pages if the system has them, how much is in use, and returning it to the system."""

import ctypes
import gc
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

# Bytes of a cache line of the processor.
LINE = 64
# A huge page lies at a multiple of its size.
HUGE_PAGE = 2**21
# The smallest piece that a ``Room`` requests at once.
PIECE = 2**26
# Linux's MAP_NORESERVE, which Python 3.11 does not name: one large piece is promised as easily as many small ones.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


def untouched(sizes: Sequence[int]) -> list[Tensor]:
    """Bytes, uint8 ``(size,)`` for each size, in separate storages; they take no memory before they are written to.

    Steps jump between rows. With pages of 4 KiB they take up to a fifth longer, depending on where the rows are.

    Raises:
        MemoryError: the system refuses so much.
    """
    starts = list(accumulate((-(-size // LINE) * LINE for size in sizes), initial=0))
    # Whole huge pages from the first byte to the last.
    spare = 2 * HUGE_PAGE if starts[-1] >= HUGE_PAGE else 0
    try:
        memory = mmap.mmap(-1, max(starts[-1], 1) + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        raise MemoryError(f"no {starts[-1] / 1e9:.1f} GB of memory: {error.strerror}") from error
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    base = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE if spare else 0
    return [
        torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=base + start)
        if size
        else torch.empty(0, dtype=torch.uint8)
        for start, size in zip(starts[:-1], sizes, strict=True)
    ]


class Room:
    """Puts matrices that are read together next to each other. A small one alone would get no huge page."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def matrix(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """An empty matrix, ``(rows, columns)``, on the host.

        Raises:
            MemoryError: the system refuses so much.
        """
        size = rows * columns * dtype.itemsize
        taken = -(-size // LINE) * LINE
        if taken > len(self._rest):
            (self._rest,) = untouched([max(taken, PIECE)])
        own, self._rest = self._rest[:size], self._rest[taken:]
        return own.view(dtype).view(rows, columns)


@cache
def threads_at_first() -> int:
    """Torch's number of threads at the first call. Later it may be that of one engine only."""
    return torch.get_num_threads()


def memory_in_use() -> int:
    """Bytes of this process, on the host and on all CUDA devices; 0 if the system does not say."""
    devices = sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count())))
    with suppress(OSError, ValueError, IndexError):
        return devices + int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return devices


def give_memory_back() -> None:
    """Return unused memory to the system and the devices, including objects that were hidden from the garbage
    collector."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
