"""The bandwidth of the device's memory, which limits every decoder that reads its weights once a token."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

REPETITIONS = 5
SMALLEST_BYTES = 2**28
LARGEST_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second.

    copy: bytes read plus bytes written, when one buffer is copied to another.
    read: bytes read by the fastest of a few plain kernels that only read.
    """

    copy: float
    read: float

    def or_faster(self, other: "Bandwidth") -> "Bandwidth":
        """The better of two measurements, because other programs can only make a measurement slower."""
        return Bandwidth(max(self.copy, other.copy), max(self.read, other.read))


@torch.inference_mode()
def measure_bandwidth(device: torch.device, size: int | None = None) -> Bandwidth:
    """Medians on buffers of ``size`` bytes each. The default is far larger than the caches."""
    size = size or _buffer_bytes(device)
    return Bandwidth(_copy(size, device), _read(size, device))


def _copy(size: int, device: torch.device) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _read(size: int, device: torch.device) -> float:
    source = torch.ones(size // 4, device=device)
    matrix, vector = source.view(-1, 1024), torch.ones(1024, device=device)
    # The device and the build of the library decide which one is fastest.
    readers: list[Callable[[], object]] = [
        lambda: source.amax(),
        lambda: source.sum(),
        lambda: source.view(torch.int64).sum(),
        lambda: torch.mv(matrix, vector),
    ]
    return source.nbytes / min(_median_seconds(reader, device) for reader in readers)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The first call does not count: it chooses kernels and touches pages."""
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    return statistics.median([clock(work) for _ in range(REPETITIONS + 1)][1:])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cuda_seconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _buffer_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return LARGEST_BYTES
    return max(SMALLEST_BYTES, min(LARGEST_BYTES, 8 * _cache_bytes()))


def _cache_bytes() -> int:
    """The size of the largest cache of a core; 0 where the platform does not tell."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [file.read_text().strip() for file in folder.glob("index*/size")]
    return max((int(size[:-1]) * 1024 for size in sizes if size.endswith("K")), default=0)
