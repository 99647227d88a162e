"""Which dtype a device runs fastest in: asked of a GPU, measured on a CPU."""

import time

import torch
from torch.nn import functional

# A feed-forward projection as a small model has it, and tokens enough for a processor's units to show.
INPUTS, OUTPUTS, TOKENS = 2048, 4096, 64
ROUNDS = 4


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster than float32, float32 otherwise. Takes some 0.1 s on a CPU.

    Every CPU reads half the bytes in half the time; but one without bfloat16 units emulates the products of a
    prompt, many times slower. That is what is timed: the two results lie so far apart (0.25 with units, above 2
    without) that a busy machine does not choose differently from one start to the next.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and _seconds(torch.bfloat16) < _seconds(torch.float32):
        return torch.bfloat16
    return torch.float32


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """For one projection of a chunk of a prompt, at best."""
    weight, x_TD = torch.ones(OUTPUTS, INPUTS, dtype=dtype), torch.ones(TOKENS, INPUTS, dtype=dtype)
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        functional.linear(x_TD, weight)
        times.append(time.perf_counter() - started)
    return min(times)
