"""Resting values: what a neuron gives, on average, on the tokens on which its gate is within its limit.

Shapes: T tokens, F feed-forward neurons.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from griffin.library import compiled
from griffin.model.matrix.native import spread

# A resting value counts so many tokens with the value 0 besides: few tokens make a poor mean.
FEW_TOKENS = 4
# Of the compiled function: how numbers are held, see decode/c/model.h.
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Threads begin at multiples of so many neurons.
NEURONS = 64


def resting_values(given_TF: Tensor, z_TF: Tensor, limits_F: Tensor) -> Tensor:
    """The means of z over the tokens whose ``given``, in size, does not exceed a neuron's limit: fp32 ``(F,)``."""
    native = _native() if given_TF.device.type == "cpu" and given_TF.dtype in FORMATS else None
    if native is None or given_TF.dtype != z_TF.dtype or given_TF.stride(1) != 1 or z_TF.stride(1) != 1:
        rests_TF = given_TF.abs().float() <= limits_F
        return torch.where(rests_TF, z_TF.float(), 0).sum(dim=0) / (rests_TF.sum(dim=0) + FEW_TOKENS)
    limits_F, resting_F = limits_F.contiguous(), torch.empty(len(limits_F))
    tokens, size, kind = len(given_TF), given_TF.element_size(), FORMATS[given_TF.dtype]

    def find(first: int, end: int) -> None:
        native(
            resting_F.data_ptr(), given_TF.data_ptr(), given_TF.stride(0) * size, z_TF.data_ptr(),
            z_TF.stride(0) * size, kind, tokens, limits_F.data_ptr(), float(FEW_TOKENS), first, end,
        )  # fmt: skip

    spread(len(limits_F), NEURONS, find)
    return resting_F


@cache
def _native() -> "Callable[..., None] | None":
    """The compiled function; None where there was no C compiler at installation, or it is of another version."""
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
