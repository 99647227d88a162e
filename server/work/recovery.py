"""Engines that have failed: which ones work, what clients are told, and how failed ones are rebuilt."""

import logging
import threading
import time
import traceback
from collections.abc import Callable

from server.errors import EngineFailed
from server.work.job import EngineLike

logger = logging.getLogger("griffin")

# After so many failed requests in a row the server reports that it is not ready, but only for some time after the last
# failure: a server that is not ready gets no requests, so it could never prove that it works again.
FAILURES = 3
UNREADY_S = 30
# After so many failed rebuilds of one engine in a row, only a restart of the process may help.
HOPELESS = 5
# Seconds between attempts to rebuild an engine; each pause is twice the previous one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Recovery:
    """Knows which engines work. Shares its lock with the queue, so a job ends and its engine is lost at once."""

    def __init__(self, engines: int, changed: threading.Condition, closed: threading.Event) -> None:
        """
        Args:
            engines: number of engines.
            changed: the lock.
            closed: set when the server ends.
        """
        self.engines, self._changed, self._closed = engines, changed, closed
        # Engines that are being rebuilt, and how many of them failed at the first attempt.
        self._away = self._broken = 0
        self._hopeless = False
        self._streak = Streak()

    @property
    def working(self) -> int:
        """Number of engines that are not being rebuilt."""
        return self.engines - self._away

    def require_an_engine(self) -> None:
        """
        Raises:
            EngineFailed: every engine failed its first rebuild. During a first attempt, requests may wait.
        """
        if self._broken == self.engines:
            raise EngineFailed("the engine has failed and is being rebuilt; try again soon", int(LONGEST_PAUSE_S))

    def require_health(self) -> None:
        """
        Raises:
            EngineFailed: no engine could be rebuilt, or too many requests failed in a row.
        """
        self.require_an_engine()
        if self._streak.alarming:
            raise EngineFailed(
                f"the last {self._streak.failures} requests failed inside the engine", int(LONGEST_PAUSE_S)
            )

    def require_hope(self) -> None:
        """
        Raises:
            EngineFailed: an engine failed so many rebuilds that only a restart of the process may help.
        """
        if self._hopeless and self._broken == self.engines:
            raise EngineFailed("the engine could not be rebuilt; the process needs a restart", int(LONGEST_PAUSE_S))

    def lose(self) -> None:
        """An engine has failed. Call ``rebuild`` next, without holding the lock."""
        with self._changed:
            self._away += 1

    def request_failed(self, *, counts: bool) -> None:
        """
        Args:
            counts: False for a failure that says nothing about the engine, such as too little memory.
        """
        with self._changed:
            self._streak.fail(counts)

    def request_succeeded(self) -> None:
        with self._changed:
            self._streak.end()

    def rebuild(
        self,
        engine: EngineLike,
        failure: str,
        request_id: str,
        on_restart: Callable[[], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        """Rebuild a lost engine until it works again or the server ends. Runs on the thread of its worker.

        Args:
            failure: what happened, for the log.
            request_id: the request during which it happened; may be empty.
            on_restart: called once the engine works.
            on_broken: called if no other engine is left to take the waiting jobs.
        """
        name, pause_s, attempts = threading.current_thread().name, FIRST_PAUSE_S, 0
        extra = {"request_id": request_id} if request_id else {}
        logger.error("%s failed (%s); rebuilding it", name, failure, extra=extra)
        while not self._closed.is_set():
            try:
                engine.rebuild()
            except BaseException:
                logger.exception("%s could not be rebuilt; trying again in %g s", name, pause_s)
                attempts += 1
                self._resist(attempts, on_broken)
                # Not the lock's own wait: a thread waiting there would take a notification meant for another.
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                on_restart()
                break
        with self._changed:
            self._away -= 1
            self._broken -= attempts > 0

    def _resist(self, attempts: int, on_broken: Callable[[Exception], None]) -> None:
        with self._changed:
            self._broken += attempts == 1
            self._hopeless |= attempts >= HOPELESS
            if self._broken == self.engines:
                on_broken(EngineFailed("the engine has failed", int(LONGEST_PAUSE_S)))


class Streak:
    """Requests that failed inside an engine in a row."""

    def __init__(self) -> None:
        self.failures = 0
        self._last_at = 0.0

    @property
    def alarming(self) -> bool:
        return self.failures >= FAILURES and time.monotonic() - self._last_at < UNREADY_S

    def fail(self, counts: bool) -> None:
        self.failures += counts
        self._last_at = time.monotonic()

    def end(self) -> None:
        self.failures = 0


def forget_frames(error: BaseException | None) -> None:
    """Clear the frames of an exception and its causes: on a GPU, a rebuild needs the memory that they hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
