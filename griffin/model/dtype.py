"""The dtype in which a device is fastest: a GPU is asked, a CPU is measured."""

import time

import torch
from torch.nn import functional

from griffin.errors import LoadError

# A feed-forward projection of a small model's size, and enough tokens for the processor's matrix units to matter.
INPUTS, OUTPUTS, TOKENS = 2048, 4096, 64
ROUNDS = 4


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by name, or with auto the fastest one of the device.

    Raises:
        LoadError: no such dtype.
    """
    if name == "auto":
        return fastest_dtype(device)
    if name not in DTYPES:
        raise LoadError(f"unknown dtype '{name}'; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if it is faster than float32, otherwise float32. Takes about 0.1 s on a CPU.

    Every CPU reads half the bytes in half the time. But a CPU without bfloat16 units emulates the products of a prompt,
    many times slower, so these products are timed. bfloat16 takes a quarter of the time with such units, and more than
    twice the time without them. The difference is so large that a busy machine gives the same result at each start.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and _seconds(torch.bfloat16) < _seconds(torch.float32):
        return torch.bfloat16
    return torch.float32


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """The shortest of several runs of one projection of a prompt chunk."""
    weight, x_TD = torch.ones(OUTPUTS, INPUTS, dtype=dtype), torch.ones(TOKENS, INPUTS, dtype=dtype)
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        functional.linear(x_TD, weight)
        times.append(time.perf_counter() - started)
    return min(times)
