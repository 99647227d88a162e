"""Loops, open and closed: when each request is sent."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from loadtest.jobs import Job

Send = Callable[[Job, float], Coroutine[Any, Any, None]]
Clock = Callable[[], float]


async def open_loop(due_s: Iterable[float], jobs: Iterator[Job], send: Send, now: Clock, stop: asyncio.Event) -> None:
    """Each request starts when it is due, whether or not earlier ones were answered.

    Args:
        due_s: the times on the clock ``now``.
        stop: when it is set, no more requests start, and running ones are cancelled.
    """
    tasks: set[asyncio.Task[None]] = set()
    for due in due_s:
        if await _stopped_before(due - now(), stop):
            break
        tasks.add(asyncio.create_task(send(next(jobs), due)))
    await _all_ended(tasks, stop)


async def closed_loop(
    users: int, jobs: Iterator[Job], send: Send, now: Clock, until_s: float, stop: asyncio.Event
) -> None:
    """Each user sends a request when the last answer has ended, until there are no more jobs or the time is over."""

    async def user() -> None:
        while (start := now()) < until_s:
            job = next(jobs, None)
            if job is None:
                return
            await send(job, start)

    await _all_ended({asyncio.create_task(user()) for _ in range(users)}, stop)


async def _stopped_before(seconds: float, stop: asyncio.Event) -> bool:
    if seconds <= 0:
        # Late: start this request at once, but let other tasks run first, so that a stop is noticed.
        await asyncio.sleep(0)
        return stop.is_set()
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _all_ended(tasks: set[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Wait for all tasks, or for ``stop``. Raise the error of a task, which is a fault of our own."""
    stopped = asyncio.create_task(stop.wait())
    running = set(tasks)
    while running and not stopped.done():
        ended, _ = await asyncio.wait({*running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        running -= ended
        for task in ended - {stopped}:
            task.result()
    for task in (*running, stopped):
        task.cancel()
    await asyncio.gather(*running, stopped, return_exceptions=True)
