"""Resting values: a neuron's mean output over the tokens on which its gate is within its limit.

Shapes: T tokens, F feed-forward neurons.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from griffin.library import compiled
from griffin.model.matrix.native import spread

# A resting value also counts so many tokens with value 0, because few tokens give a poor mean.
FEW_TOKENS = 4
# Number formats of the compiled function, see decode/c/model.h.
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Threads begin at multiples of so many neurons.
NEURONS = 64


def resting_values(z_TF: Tensor, up_TF: Tensor | None, limits_F: Tensor) -> Tensor:
    """The means of z over the tokens on which a neuron's gate is within its limit: fp32 ``(F,)``.

    The gate's value is z / up, so it is not computed again: |z| <= limit |up|.

    Args:
        up_TF: None in a block without a gate, whose limit applies to z itself.
    """
    native = _native() if z_TF.device.type == "cpu" and z_TF.dtype in FORMATS else None
    alike = up_TF is None or (up_TF.dtype == z_TF.dtype and up_TF.stride(1) == 1)
    if native is None or not alike or z_TF.stride(1) != 1:
        most_TF = limits_F if up_TF is None else limits_F * up_TF.abs().float()
        rests_TF = z_TF.abs().float() <= most_TF
        return torch.where(rests_TF, z_TF.float(), 0).sum(dim=0) / (rests_TF.sum(dim=0) + FEW_TOKENS)
    limits_F, resting_F = limits_F.contiguous(), torch.empty(len(limits_F))
    tokens, size, kind = len(z_TF), z_TF.element_size(), FORMATS[z_TF.dtype]
    up, up_stride = (None, 0) if up_TF is None else (up_TF.data_ptr(), up_TF.stride(0) * size)

    def find(first: int, end: int) -> None:
        native(
            resting_F.data_ptr(), z_TF.data_ptr(), z_TF.stride(0) * size, up, up_stride, kind, tokens,
            limits_F.data_ptr(), float(FEW_TOKENS), first, end,
        )  # fmt: skip

    spread(len(limits_F), NEURONS, find)
    return resting_F


@cache
def _native() -> "Callable[..., None] | None":
    """The compiled function; None if there was no C compiler at installation, or the library has another version."""
    path = compiled()
    try:
        function = ctypes.CDLL(str(path)).griffin_resting if path else None
    except (OSError, AttributeError):
        return None
    if function is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = (
            pointer, pointer, number, pointer, number, number, number, pointer, ctypes.c_float, number, number,
        )  # fmt: skip
        function.restype = None
    return function
