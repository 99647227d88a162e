"""The dtype in which a device is fastest: a GPU is asked, a CPU is measured."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from griffin.errors import LoadError

# A feed-forward projection of a small model's size, and enough tokens for the processor's matrix units to matter.
INPUTS, OUTPUTS, TOKENS = 2048, 4096, 64
# Each dtype is timed so often. A difference is clear if one takes so many times as long, as on an idle machine.
FEWEST_ROUNDS, MOST_ROUNDS, CLEAR = 4, 16, 2.0


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
    """bfloat16 if it is faster than float32, otherwise float32. Takes about 0.2 s on a CPU.

    Every CPU reads half the bytes in half the time. But a CPU without bfloat16 units emulates the products of a prompt,
    many times slower, so these products are timed. bfloat16 takes a quarter of the time with such units, and more than
    twice the time without them. On a busy machine the difference may be unclear at first. Then more rounds are timed,
    so that each start gives the same result.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    half, full = _runs(torch.bfloat16), _runs(torch.float32)
    shortest_half, shortest_full = next(half), next(full)
    for done in range(1, MOST_ROUNDS):
        longer, shorter = max(shortest_half, shortest_full), min(shortest_half, shortest_full)
        if done >= FEWEST_ROUNDS and longer > CLEAR * shorter:
            break
        shortest_half, shortest_full = min(shortest_half, next(half)), min(shortest_full, next(full))
    return torch.bfloat16 if shortest_half < shortest_full else torch.float32


def _runs(dtype: torch.dtype) -> Iterator[float]:
    """The seconds of one projection of a prompt chunk, again and again."""
    weight, x_TD = torch.ones(OUTPUTS, INPUTS, dtype=dtype), torch.ones(TOKENS, INPUTS, dtype=dtype)
    while True:
        yield _seconds(x_TD, weight)


@torch.inference_mode()
def _seconds(x_TD: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    functional.linear(x_TD, weight)
    return time.perf_counter() - started
