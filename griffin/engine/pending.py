"""PendingSelection: a prompt's neurons in use on the device, and their report, which the host asks for later."""

import hashlib
import time

import torch

from griffin.neurons import Kept, Selection


class Timer:
    """Measures from its making to ``stop``. On a GPU the device measures, and the host does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]
        self._times = [0.0, 0.0]
        self._mark(0)

    def stop(self) -> None:
        """The first call counts; later ones do nothing."""
        if not self._times[1]:
            self._mark(1)

    def seconds(self) -> float:
        """Waits for the device."""
        if not self._events:
            return self._times[1] - self._times[0]
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3

    def _mark(self, number: int) -> None:
        if self._events:
            self._events[number].record()
        self._times[number] = time.perf_counter()


class PendingSelection:
    """Neurons that were chosen, on the device. The host learns which they are when they are reported.

    kept: the neurons.
    timer: stopped once their weights are ready.
    """

    def __init__(self, kept: Kept, prompt_tokens: int, timer: Timer) -> None:
        self.kept, self.timer = kept, timer
        self._prompt_tokens = prompt_tokens
        host = torch.device("cpu")
        # Copies that the host does not wait for. They have arrived when the timer has stopped.
        self._indices = torch.cat(tuple(kept.layers)).to(torch.int32).to(host, non_blocking=True)
        self._offset_LD = None if kept.offset_LD is None else kept.offset_LD.to(host, non_blocking=True)
        self._correction = kept.correction and kept.correction.to(host, non_blocking=True)
        self._acting = kept.acting and kept.acting.to(host, non_blocking=True)

    def selection(self) -> Selection:
        """Waits for the device."""
        seconds = self.timer.seconds()
        # Clones, because copies from CUDA are page-locked memory, and selections are held for a while.
        indices = self._indices.clone()
        offset_LD = None if self._offset_LD is None else self._offset_LD.clone()
        acting = self._acting and self._acting.clone()
        # On a CPU the correction is the one in use. It is large and never changes.
        correction = self._correction
        if correction is not None and self.kept.layers[0].device.type != "cpu":
            correction = correction.clone()
        digest = hashlib.sha256(indices.numpy().tobytes())
        # The offset depends on the correction, so the name need not.
        if offset_LD is not None:
            digest.update(offset_LD.numpy().tobytes())
        if acting is not None:
            digest.update(torch.cat([*acting.thresholds, *acting.resting]).numpy().tobytes())
        kept = Kept(torch.split(indices, self.kept.counts), offset_LD, correction, acting)
        return Selection(seconds, digest.hexdigest()[:16], self._prompt_tokens, kept)
