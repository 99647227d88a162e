"""Memory in bytes (torch's allocations on CUDA, the process's resident set on a CPU), and the device's name."""

import os
from contextlib import suppress
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Start a new peak. On a platform that cannot, the peak stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        # 5 resets the highest resident set (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """The peak since ``reset_peak``; None if the platform does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _proc_bytes("/proc/self/status", "VmHWM:")


def available_bytes(device: torch.device) -> int | None:
    """Memory that is still free; None if the platform does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _proc_bytes("/proc/meminfo", "MemAvailable:")


def device_name(device: torch.device) -> str:
    """The device's name from its maker."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return os.uname().machine


def _proc_bytes(file: str, field: str) -> int | None:
    with suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None
