"""The bounded queue: reserve a place, submit a job, take it, finish it or discard it.

All methods use one lock, ``changed``, on which the worker threads wait.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from server.errors import QueueFull, RequestTimeout, ServerDraining
from server.work.job import Job
from server.work.recovery import Recovery

LONGEST_RETRY_S = 120
# How fast the estimate of a job's duration follows new jobs, and its first value in seconds.
SMOOTHING, FIRST_ESTIMATE_S = 0.2, 1.0


class Queue:
    """Jobs that wait and jobs that run. All engines share one queue."""

    def __init__(self, size: int, recovery: Recovery, changed: threading.Condition) -> None:
        """
        Args:
            size: number of jobs that may wait while no engine is free.
            recovery: knows how many engines work.
            changed: the lock; notified when there is a job to take.
        """
        self._size, self._recovery, self._changed = size, recovery, changed
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._reserved = 0
        self._draining = False
        self._pace = Pace()
        # The last time at which there was a job or a reserved place.
        self.busy_at = 0.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs for which no engine is free."""
        with self._changed:
            return self._backlog()

    @property
    def idle(self) -> bool:
        """Whether no job runs or waits."""
        with self._changed:
            return not self._running and not self._waiting

    @property
    def has_job(self) -> bool:
        return bool(self._waiting)

    def busy(self) -> bool:
        """Whether there is, or soon will be, more important work than a comparison. Needs no lock."""
        return bool(self._waiting or self._running or self._reserved or self._draining)

    def require_room(self) -> None:
        """Raises like ``reserve``."""
        with self._changed:
            if self._draining:
                raise ServerDraining()
            self._recovery.require_an_engine()
            if len(self._waiting) + self._reserved - self._free() >= self._size:
                raise QueueFull(
                    f"all workers are busy and the queue is full: {self._backlog()} requests wait "
                    f"(queue_size={self._size}); try again later",
                    self._pace.retry_after_s(len(self._waiting) + self._reserved + 1, self._recovery.engines),
                )

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Reserve a place for a job that is still being prepared; ``submit`` takes it.

        Raises:
            QueueFull: the queue is full.
            ServerDraining: the server is shutting down.
            EngineFailed: no engine works.
        """
        with self._changed:
            self.require_room()
            self._reserved += 1
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= 1
                self.busy_at = time.monotonic()
                # Threads that wait for a quiet time must start their wait again.
                self._changed.notify()

    def submit(self, job: Job) -> None:
        """Queue a job for which a place is reserved. Called on the event loop.

        Raises:
            ServerDraining: the server is shutting down.
            EngineFailed: the last engine failed after the place was reserved, and could not be rebuilt.
        """
        with self._changed:
            if self._draining:
                raise ServerDraining()
            self._recovery.require_an_engine()
            self._waiting.append(job)
            self._changed.notify()
        job.watch_deadline(self._expire)

    def discard(self, job: Job) -> None:
        """Cancel a job whose client has left, and free its place."""
        job.forget_deadline()
        job.cancel()
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def take(self) -> Job:
        """The job that has waited longest; it counts as running from here on. There must be one."""
        with self._changed:
            job = self._waiting.popleft()
            self._running.add(job)
            return job

    def finish(self, job: Job, seconds: float, *, failed: bool) -> None:
        """A job has ended after ``seconds``."""
        with self._changed:
            self._running.discard(job)
            self.busy_at = time.monotonic()
            if not failed and job.complete:
                self._pace.learn(seconds)

    def drain(self) -> None:
        """Refuse new jobs. Jobs that wait or run continue."""
        with self._changed:
            self._draining = True

    def dismiss(self, reason: Exception, *, running: bool = False) -> None:
        """End all waiting jobs, and on request the running ones, with a reason for their clients."""
        with self._changed:
            for job in (*self._waiting, *(self._running if running else ())):
                job.mailbox.post(reason)
                job.cancel()
            self._waiting.clear()

    def _expire(self, job: Job) -> None:
        job.mailbox.post(
            RequestTimeout(f"the request was not finished within {job.deadline - job.arrived:g} s", "timeout")
        )
        self.discard(job)

    def _backlog(self) -> int:
        return max(0, len(self._waiting) - self._free())

    def _free(self) -> int:
        # A cancelled job ends within a token, so its engine counts as free.
        return self._recovery.working - sum(not job.cancelled() for job in self._running)


class Pace:
    """An estimate of how long a job takes."""

    def __init__(self) -> None:
        self._mean_s = FIRST_ESTIMATE_S

    def learn(self, seconds: float) -> None:
        """A job has taken ``seconds``."""
        self._mean_s += SMOOTHING * (seconds - self._mean_s)

    def retry_after_s(self, jobs: int, engines: int) -> int:
        """Seconds until ``jobs`` jobs are done, from 1 to ``LONGEST_RETRY_S``."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self._mean_s * jobs / engines)))
