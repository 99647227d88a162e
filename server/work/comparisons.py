"""Compares answers with the full model: one at a time, while no worker has other work."""

import threading
import time
from collections.abc import Callable
from functools import partial

from griffin import Selection
from griffin.errors import Cancelled
from server.work.job import Ask, EngineLike
from server.work.queue import Queue
from server.work.recovery import Recovery, forget_frames
from server.work.shadow import Shadow, Shadows

# Seconds without a request before a comparison, so that a request that follows at once need not wait for a chunk.
QUIET_S = 1.0


class Comparisons:
    """Comparisons in idle time. Shares its lock with the queue."""

    def __init__(
        self,
        shadows: Shadows | None,
        width: int,
        queue: Queue,
        recovery: Recovery,
        changed: threading.Condition,
        quiet_s: float,
    ) -> None:
        """
        Args:
            shadows: the answers that wait; None: nothing is compared.
            width: FF neurons in each layer.
        """
        self._shadows, self._width, self._queue, self._recovery = shadows, width, queue, recovery
        self._changed, self._quiet_s = changed, quiet_s
        # Whether a worker is comparing an answer.
        self._comparing = False

    def draws(self, ask: Ask) -> bool:
        """Whether an answer to this prompt is to be compared once it is finished."""
        return self._shadows is not None and self._shadows.draws(ask, self._width)

    def later(self, ask: Ask, selection: Selection | None, ids: list[int]) -> None:
        """Compare an answer that was drawn, once there is no other work."""
        assert self._shadows is not None
        with self._changed:
            self._shadows.put(ask, selection, ids)
            self._changed.notify()

    def due_in_s(self) -> float | None:
        """Seconds until an answer may be compared. None: no answer waits, or something else must happen first."""
        # While one engine is rebuilt, a request may need all others.
        lost = self._recovery.working < self._recovery.engines
        if not self._shadows or self._comparing or lost or self._queue.busy():
            return None
        return max(0.0, self._queue.busy_at + self._quiet_s - time.monotonic())

    def take(self) -> Shadow:
        """The answer to compare. Call ``run`` with it next, without holding the lock."""
        assert self._shadows is not None
        self._comparing = True
        return self._shadows.take()

    def run(self, engine: EngineLike, shadow: Shadow) -> str:
        """Compare an answer; put it back if more important work arrives.

        Returns:
            The name of the exception if the engine has failed and must be rebuilt; otherwise an empty text.
        """
        assert self._shadows is not None
        failure = ""
        outcome: Callable[[], None] = partial(self._shadows.interrupted, shadow)
        try:
            outcome = partial(self._shadows.compared, shadow, shadow.compare(engine, self._queue.busy))
        except Cancelled:
            pass
        except BaseException as error:
            outcome, failure = self._shadows.failed, type(error).__name__
            forget_frames(error)
        with self._changed:
            outcome()
            self._comparing = False
            if failure:
                self._recovery.lose()
        return failure
