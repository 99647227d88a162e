"""The bounded queue, and the threads that each own an engine: reserve, submit, cancel, close.

Jobs go in under a lock; see ``job`` for how events come out.
"""

import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from griffin import Selection
from griffin.errors import Cancelled, InvalidRequest, OutOfMemory
from server.errors import EngineFailed, QueueFull, RequestTimeout, ServerDraining
from server.work.job import Ask, EngineLike, Job
from server.work.shadow import Shadow, Shadows

logger = logging.getLogger("griffin")

LONGEST_RETRY_S = 120
# How fast the estimate of a request's duration follows new ones.
SMOOTHING = 0.2
# Requests that fail one after the other before the server calls itself not ready, and for how long after the last:
# where nothing is sent to a server that is not ready, no request could prove that it works again.
FAILURES = 3
UNREADY_S = 30
# Rebuilds that fail one after the other before the process is given up.
HOPELESS = 5
# Between attempts to rebuild an engine: doubled each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# Without a request, until answers are compared: one that follows at once is not to wait for a chunk of that.
QUIET_S = 1.0


class Workers:
    """One thread for each engine, one queue for all of them."""

    def __init__(
        self,
        engines: Sequence[EngineLike],
        queue_size: int,
        on_restart: Callable[[], None] = lambda: None,
        shadows: Shadows | None = None,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._engines = engines
        self._shadows, self._quiet_s = shadows, quiet_s
        self._queue_size = queue_size
        self._on_restart = on_restart
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._draining = False
        self._closed = threading.Event()
        self._reserved = 0
        # Whether an answer is being compared, and when there was something else to do last.
        self._comparing = False
        self._busy_at = 0.0
        # Engines that are being rebuilt, those of them that resist, and requests that failed in a row.
        self._away = self._broken = self._failures = 0
        self._failed_at = 0.0
        self._hopeless = False
        self._mean_s = 1.0
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"worker-{index}", daemon=True)
            for index, engine in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def engine(self) -> EngineLike:
        """Any of the engines, for what they all have in common."""
        return self._engines[0]

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that no engine is free for."""
        with self._changed:
            return self._backlog()

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        with self._changed:
            return not self._running and not self._waiting

    def require_health(self) -> None:
        """
        Raises:
            EngineFailed: no engine could be rebuilt, or requests fail one after the other.
        """
        self._require_an_engine()
        if self._failures >= FAILURES and time.monotonic() - self._failed_at < UNREADY_S:
            raise EngineFailed(f"the last {self._failures} requests failed inside the engine", int(LONGEST_PAUSE_S))

    def require_hope(self) -> None:
        """
        Raises:
            EngineFailed: an engine has resisted so many rebuilds that only a new process may help.
        """
        if self._hopeless and self._broken == len(self._engines):
            raise EngineFailed("the engine could not be rebuilt; the process needs a restart", int(LONGEST_PAUSE_S))

    def require_room(self) -> None:
        """Raises like ``reserve``."""
        with self._changed:
            self._require_room()

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place in the queue for a request that is still being prepared; ``submit`` takes it.

        Raises:
            QueueFull: as many jobs wait as may.
            ServerDraining: the server is on its way down.
            EngineFailed: there is no engine that works.
        """
        with self._changed:
            self._require_room()
            self._reserved += 1
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= 1
                self._busy_at = time.monotonic()
                # One that waits to compare again.
                self._changed.notify()

    def check(self, asks: Sequence[Ask]) -> None:
        """
        Raises:
            InvalidRequest: what ``check`` and ``require`` of the engine say of one of the prompts.
        """
        for ask in asks:
            self.engine.require(ask.pruning)
            # All samplings of a prompt differ in their seeds only.
            self.engine.check(ask.prompt_ids, next(iter(ask.samplings), None), ask.scoring)

    def submit(self, job: Job) -> None:
        """Queue a job that ``check`` has passed and for which a place is reserved; from the event loop's thread.

        Raises:
            ServerDraining: the server is on its way down.
            EngineFailed: since the place was reserved, the last engine has failed and could not be rebuilt.
        """
        with self._changed:
            if self._draining:
                raise ServerDraining()
            self._require_an_engine()
            self._waiting.append(job)
            self._changed.notify()
        job.watch_deadline(self._expire)

    def discard(self, job: Job) -> None:
        """Cancel a job that nobody waits for any more, and free its place in the queue."""
        job.forget_deadline()
        job.cancel()
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def draws(self, ask: Ask) -> bool:
        """Whether an answer to this is to be compared with the full model, if it is finished."""
        return self._shadows is not None and self._shadows.draws(ask, self.engine.accounting.width)

    def compare_later(self, ask: Ask, selection: Selection | None, ids: list[int]) -> None:
        """When there is nothing else to do, one that was drawn."""
        assert self._shadows is not None
        with self._changed:
            self._shadows.put(ask, selection, ids)
            self._changed.notify()

    def drain(self) -> None:
        """Take nothing new; what was accepted goes on."""
        with self._changed:
            self._draining = True

    def close(self) -> None:
        """Cancel everything, with an error for whoever still waits, and let the threads end."""
        with self._changed:
            self._draining = True
            self._closed.set()
            _dismiss((*self._waiting, *self._running), ServerDraining())
            self._waiting.clear()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads after ``close``; one in a long prompt chunk may outlast the wait."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _expire(self, job: Job) -> None:
        job.post(RequestTimeout(f"the request was not finished within {job.deadline - job.arrived:g} s", "timeout"))
        self.discard(job)

    def _backlog(self) -> int:
        return max(0, len(self._waiting) - self._free())

    def _free(self) -> int:
        # A cancelled job ends within a token; its engine is as good as free.
        return len(self._engines) - self._away - sum(not job.cancelled() for job in self._running)

    def _require_room(self) -> None:
        if self._draining:
            raise ServerDraining()
        self._require_an_engine()
        if len(self._waiting) + self._reserved - self._free() >= self._queue_size:
            wait_s = math.ceil(self._mean_s * (len(self._waiting) + self._reserved + 1) / len(self._engines))
            raise QueueFull(
                f"all workers are busy and {self._backlog()} requests wait, as many as may "
                f"(queue_size={self._queue_size}); try again later",
                min(LONGEST_RETRY_S, max(1, wait_s)),
            )

    def _require_an_engine(self) -> None:
        """One that works, or is being rebuilt for the first time after a failure: a request may wait for that."""
        if self._broken == len(self._engines):
            raise EngineFailed("the engine has failed and is being rebuilt; try again soon", int(LONGEST_PAUSE_S))

    def _work(self, engine: EngineLike) -> None:
        while (task := self._take()) is not None:
            if isinstance(task, Job):
                self._run(engine, task)
            else:
                self._compare(engine, task)

    def _take(self) -> Job | Shadow | None:
        with self._changed:
            while not (self._waiting or self._closed.is_set()):
                if (quiet_in_s := self._quiet_in()) == 0:
                    assert self._shadows is not None
                    self._comparing = True
                    return self._shadows.take()
                self._changed.wait(quiet_in_s)
            if self._closed.is_set():
                return None
            job = self._waiting.popleft()
            self._running.add(job)
            return job

    def _quiet_in(self) -> float | None:
        """Seconds until an answer may be compared; None if there is none, or something else has to happen first."""
        if not self._shadows or self._comparing or self._away or self._busy():
            return None
        return max(0.0, self._busy_at + self._quiet_s - time.monotonic())

    def _busy(self) -> bool:
        """Asked without the lock, too, by whoever compares."""
        return bool(self._waiting or self._running or self._reserved or self._draining)

    def _run(self, engine: EngineLike, job: Job) -> None:
        started = job.started = time.monotonic()
        failure = ""
        try:
            job.run(engine)
        except Cancelled:
            pass
        except InvalidRequest as refusal:
            job.post(refusal)
        except BaseException as error:
            # Its own request fails with it; the thread lives on for the next, whatever was raised.
            failure = type(error).__name__
            _forget_frames(error)
            job.post(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self._finish(job, time.monotonic() - started, failure)
        job.post(None)
        if failure:
            self._rebuild(engine, failure, job.request_id)

    def _compare(self, engine: EngineLike, shadow: Shadow) -> None:
        """Counts as no request, whatever becomes of it."""
        assert self._shadows is not None
        failure = ""
        outcome: Callable[[], None] = partial(self._shadows.interrupted, shadow)
        try:
            outcome = partial(self._shadows.compared, shadow, shadow.compare(engine, self._busy))
        except Cancelled:
            pass
        except BaseException as error:
            outcome, failure = self._shadows.failed, f"{type(error).__name__}, while comparing an answer"
            _forget_frames(error)
        with self._changed:
            outcome()
            self._comparing = False
            self._away += bool(failure)
        if failure:
            self._rebuild(engine, failure, "")

    def _finish(self, job: Job, seconds: float, failure: str) -> None:
        with self._changed:
            self._running.discard(job)
            self._busy_at = time.monotonic()
            if failure:
                # One request may be too large for the memory there is; the engine is none the worse for it.
                self._failures += failure != OutOfMemory.__name__
                self._failed_at = time.monotonic()
                self._away += 1
            elif job.answered or not job.cancelled():
                self._failures = 0
                self._mean_s += SMOOTHING * (seconds - self._mean_s)

    def _rebuild(self, engine: EngineLike, failure: str, request_id: str) -> None:
        """Until it works again, or the server ends. What waits is refused when no other engine could take it."""
        name, pause_s, attempts = threading.current_thread().name, FIRST_PAUSE_S, 0
        extra = {"request_id": request_id} if request_id else {}
        logger.error("%s failed (%s) and is rebuilt", name, failure, extra=extra)
        while not self._closed.is_set():
            try:
                engine.rebuild()
            except BaseException:
                logger.exception("%s could not be rebuilt; trying again in %g s", name, pause_s)
                with self._changed:
                    attempts += 1
                    self._broken += attempts == 1
                    self._hopeless |= attempts >= HOPELESS
                    if self._broken == len(self._engines):
                        _dismiss(self._waiting, EngineFailed("the engine has failed", int(LONGEST_PAUSE_S)))
                        self._waiting.clear()
                # Not the condition: one that waits here would swallow the notice of a job.
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._on_restart()
                break
        with self._changed:
            self._away -= 1
            self._broken -= attempts > 0


def _forget_frames(error: BaseException | None) -> None:
    """What they hold, on a GPU above all, is needed for the rebuild; those of what caused it, too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _dismiss(jobs: Iterable[Job], reason: Exception) -> None:
    for job in jobs:
        job.post(reason)
        job.cancel()
