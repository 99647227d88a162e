"""PendingSelection: the choice for a prompt, already used on the device; its report comes later."""

import time

import torch

from griffin.neurons import Chosen, Selection


class Timer:
    """Measures from its creation to ``stop``. On a GPU the device measures, so the host does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]
        self._times = [0.0, 0.0]
        self._mark(0)

    def stop(self) -> None:
        """Stop measuring; later calls do nothing."""
        if not self._times[1]:
            self._mark(1)

    def seconds(self) -> float:
        """The measured seconds. Waits for the device."""
        if not self._events:
            return self._times[1] - self._times[0]
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3

    def _mark(self, number: int) -> None:
        if self._events:
            self._events[number].record()
        self._times[number] = time.perf_counter()


class PendingSelection:
    """A choice used on the device. The host learns its values when it is reported.

    chosen: the neurons or thresholds.
    timer: stopped once the decoder is ready to use them.
    """

    def __init__(self, chosen: Chosen, prompt_tokens: int, timer: Timer) -> None:
        self.chosen, self.timer = chosen, timer
        self._prompt_tokens = prompt_tokens
        # The host does not wait for this copy. It is complete when the timer has stopped.
        self._on_host = chosen.to_host()

    def selection(self) -> Selection:
        """The report. Waits for the device."""
        seconds = self.timer.seconds()
        # Cloned, because copies from CUDA are page-locked memory and selections are kept for some time.
        chosen = self._on_host.clone()
        return Selection(seconds, chosen.name(), self._prompt_tokens, chosen)
