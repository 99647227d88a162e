"""The compiled functions for codes in groups (``c/grouped.c``), spread over torch's threads.

Shapes: R rows, C columns.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from griffin.library import compiled
from griffin.model.matrix.grouping import Layout

_POINTER, _NUMBER, _LAYOUT = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(Layout)
_SIGNATURES = {
    "griffin_lay_rows": (_POINTER, _POINTER, _LAYOUT, _NUMBER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _NUMBER),
    "griffin_lay_columns": (*[_POINTER] * 4, _LAYOUT, *[_NUMBER] * 6),
    "griffin_turn_rows": (*[_POINTER] * 4, _LAYOUT, _LAYOUT, *[_NUMBER] * 4),
    "griffin_round_q4_1": (_POINTER, _POINTER, _NUMBER),
    "griffin_widen_rows": (_POINTER, ctypes.c_int, _NUMBER, _POINTER, _LAYOUT, *[_NUMBER] * 3),
    "griffin_widen_columns": (
        _POINTER, ctypes.c_int, _NUMBER, *[_POINTER] * 3, _LAYOUT, _POINTER, *[_NUMBER] * 3,
    ),
}  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None if there was no C compiler at installation, or it has another version."""
    path = compiled()
    try:
        found = ctypes.CDLL(str(path)) if path else None
        for name, arguments in _SIGNATURES.items() if found else ():
            getattr(found, name).argtypes = arguments
    except (OSError, AttributeError):
        return None
    return found


def spread(count: int, unit: int, work: Callable[[int, int], object]) -> None:
    """Call ``work(first, end)`` in threads for parts of ``count`` rows; parts begin at multiples of ``unit``."""
    threads = torch.get_num_threads()
    each = -(-count // (threads * unit)) * unit
    if each >= count:
        work(0, count)
        return
    parts = [_pool(threads).submit(work, first, min(count, first + each)) for first in range(each, count, each)]
    work(0, each)
    for part in parts:
        part.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="matrix")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
