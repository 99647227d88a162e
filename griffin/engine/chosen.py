"""Chosen: a prompt's neurons as they are in use, and what is reported of them."""

import hashlib
import time

import torch

from griffin.neurons import Kept, Selection


class Timer:
    """From its making to ``stop``: on the device, where the host does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]
        self._times = [0.0, 0.0]
        self._mark(0)

    def stop(self) -> None:
        """At the first call; what follows is not the selection's."""
        if not self._times[1]:
            self._mark(1)

    def _mark(self, number: int) -> None:
        if self._events:
            self._events[number].record()
        self._times[number] = time.perf_counter()

    def seconds(self) -> float:
        if not self._events:
            return self._times[1] - self._times[0]
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3


class Chosen:
    """Neurons that were chosen, on the device; the host need not know which they are until it reports them."""

    def __init__(self, kept: Kept, prompt_tokens: int, timer: Timer) -> None:
        self.kept, self.timer = kept, timer
        self._prompt_tokens = prompt_tokens
        # Copies that wait for nobody; they have arrived when the timer has stopped.
        self._experts = torch.cat(tuple(kept.layers)).to(torch.int32).to("cpu", non_blocking=True)
        self._offset_LD = None if kept.offset_LD is None else kept.offset_LD.to("cpu", non_blocking=True)
        host = torch.device("cpu")
        self._correction = kept.correction and kept.correction.to(host, non_blocking=True)
        self._gating = kept.gating and kept.gating.to(host, non_blocking=True)

    def selection(self) -> Selection:
        seconds = self.timer.seconds()
        # Not the copies themselves: from CUDA those are page-locked memory, and selections are kept for a while.
        experts = self._experts.clone()
        offset_LD = None if self._offset_LD is None else self._offset_LD.clone()
        # On a CPU it is the one in use, which nobody changes, and far larger than the others.
        correction = self._correction
        if correction is not None and self.kept.layers[0].device.type != "cpu":
            correction = correction.clone()
        digest = hashlib.sha256(experts.numpy().tobytes())
        # Where there is a correction, the offset depends on it.
        if offset_LD is not None:
            digest.update(offset_LD.numpy().tobytes())
        if self._gating is not None:
            digest.update(torch.cat([*self._gating.thresholds, *self._gating.resting]).numpy().tobytes())
        return Selection(
            seconds,
            digest.hexdigest()[:16],
            self._prompt_tokens,
            torch.split(experts, self.kept.counts),
            offset_LD,
            correction,
            self._gating and self._gating.clone(),
        )
