"""The bounded queue, and the threads that each own an engine: submit, cancel, close.

Threads and asyncio meet here and nowhere else: jobs go in under a lock, events come out through
``call_soon_threadsafe``.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from griffin import Accounting, Pruning, Sampling, Token
from server.errors import QueueFull, ServerDraining

logger = logging.getLogger("griffin")

LONGEST_RETRY_S = 120
SHUTTING_DOWN = "the server is shutting down; send the request to another one"
# How fast the estimate of a request's duration follows new ones.
SMOOTHING = 0.2


class EngineLike(Protocol):
    """What a worker needs of an engine. ``griffin.Engine`` has it."""

    accounting: Accounting
    context_length: int

    def check(self, prompt_ids: Sequence[int], max_tokens: int) -> None: ...

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, pruning: Pruning, cancelled: Callable[[], bool]
    ) -> Iterator[Token]: ...


@dataclass(eq=False)
class Job:
    """One sequence to generate. Times are ``time.monotonic`` seconds."""

    prompt_ids: list[int]
    sampling: Sampling
    pruning: Pruning
    arrived: float
    started: float | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _events: "asyncio.Queue[tuple[Token, float] | Exception | None]" = field(default_factory=asyncio.Queue)

    async def tokens(self) -> AsyncGenerator[tuple[Token, float], None]:
        """Each token with the time it was made. Ends early when the job is cancelled; raises what the engine raised."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        """Give the job up: in the queue at once, in the engine within one token or prompt chunk."""
        self._cancelled.set()
        self.post(None)

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def post(self, event: tuple[Token, float] | Exception | None) -> None:
        # A loop that is gone has nobody left who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Workers:
    """One thread for each engine, one queue for all of them."""

    def __init__(self, engines: Sequence[EngineLike], queue_size: int) -> None:
        self._engines = engines
        self._queue_size = queue_size
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._draining = self._closed = False
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

    def require_room(self) -> None:
        """
        Raises:
            QueueFull: as many jobs wait as may.
            ServerDraining: the server is on its way down.
        """
        with self._changed:
            self._require_room()

    def submit(self, prompt_ids: list[int], sampling: Sampling, pruning: Pruning, arrived: float) -> Job:
        """Queue a sequence; from the event loop's thread.

        Raises:
            InvalidRequest: what ``check`` of the engine says.
            QueueFull, ServerDraining: see ``require_room``.
        """
        self.engine.check(prompt_ids, sampling.max_tokens)
        job = Job(prompt_ids, sampling, pruning, arrived)
        with self._changed:
            self._require_room()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def discard(self, job: Job) -> None:
        """Cancel a job that nobody waits for any more, and free its place in the queue."""
        job.cancel()
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def drain(self) -> None:
        """Take nothing new; what was accepted goes on."""
        with self._changed:
            self._draining = True

    def close(self) -> None:
        """Cancel everything, with an error for whoever still waits, and let the threads end."""
        with self._changed:
            self._draining = self._closed = True
            for job in (*self._waiting, *self._running):
                job.post(ServerDraining(SHUTTING_DOWN, 1))
                job.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads after ``close``; one in a long prompt chunk may outlast the wait."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _backlog(self) -> int:
        return max(0, len(self._waiting) - self._free())

    def _free(self) -> int:
        # A cancelled job ends within a token; its engine is as good as free.
        return len(self._engines) - sum(not job.cancelled() for job in self._running)

    def _require_room(self) -> None:
        if self._draining:
            raise ServerDraining(SHUTTING_DOWN, 1)
        if len(self._waiting) - self._free() >= self._queue_size:
            wait_s = math.ceil(self._mean_s * (len(self._waiting) + 1) / len(self._engines))
            raise QueueFull(
                f"all workers are busy and {self._backlog()} requests wait, as many as may "
                f"(queue_size={self._queue_size}); try again later",
                min(LONGEST_RETRY_S, max(1, wait_s)),
            )

    def _work(self, engine: EngineLike) -> None:
        while (job := self._take()) is not None:
            started = job.started = time.monotonic()
            try:
                for token in engine.generate(job.prompt_ids, job.sampling, job.pruning, job.cancelled):
                    job.post((token, time.monotonic()))
            except Exception as error:
                # Its own request fails with it; the thread lives on for the next.
                job.post(error)
            self._finish(job, time.monotonic() - started)
            job.post(None)

    def _take(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            job = self._waiting.popleft()
            self._running.add(job)
            return job

    def _finish(self, job: Job, seconds: float) -> None:
        with self._changed:
            self._running.discard(job)
            if not job.cancelled():
                self._mean_s += SMOOTHING * (seconds - self._mean_s)
