"""The queue and its threads, with scripted engines."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from griffin import Pruning, Sampling
from server.errors import QueueFull, ServerDraining
from server.work.job import Ask, Job, Made
from server.work.workers import Workers
from tests.server.scripted import ScriptedEngine, wait_until


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds scripted engines back; the fixture opens it at its end in any case."""
    event = threading.Event()
    yield event
    event.set()


def submit(workers: Workers, tokens: int = 3, limit_s: float = 60) -> Job:
    now = time.monotonic()
    job = Job((Ask([1, 2], [Sampling(max_tokens=tokens)], Pruning()),), now, now + limit_s)
    with workers.queue.reserve():
        workers.queue.submit(job)
    return job


async def tokens_of(job: Job) -> AsyncIterator[int]:
    while (event := await job.mailbox.next()) is not None:
        if isinstance(event, Made):
            yield event.token.id


async def collect(job: Job) -> list[int]:
    return [id async for id in tokens_of(job)]


def test_jobs_run_in_order_on_one_engine() -> None:
    """Jobs run first come, first served, and one ends before the next starts."""

    async def scenario() -> None:
        workers = Workers([ScriptedEngine()], queue_size=8)
        jobs = [submit(workers, tokens) for tokens in (3, 1, 2)]
        results = [await collect(job) for job in jobs]
        workers.close()

        assert [len(result) for result in results] == [3, 1, 2]
        assert jobs[0].started < jobs[1].started < jobs[2].started

    asyncio.run(scenario())


def test_two_engines_run_two_jobs_at_once(gate: threading.Event) -> None:
    """There is one queue, and a thread for each engine."""

    async def scenario() -> None:
        workers = Workers([ScriptedEngine(gate=gate), ScriptedEngine(gate=gate)], queue_size=8)
        jobs = [submit(workers) for _ in range(3)]
        wait_until(lambda: workers.queue.running == 2)

        assert workers.queue.waiting == 1
        gate.set()
        assert [len(await collect(job)) for job in jobs] == [3, 3, 3]
        workers.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("queue_size", [0, 2])
def test_a_full_queue_refuses(gate: threading.Event, queue_size: int) -> None:
    """One job runs, ``queue_size`` jobs wait, and the next is refused with a time to come back."""

    async def scenario() -> None:
        workers = Workers([ScriptedEngine(gate=gate)], queue_size=queue_size)
        jobs = [submit(workers) for _ in range(1 + queue_size)]
        with pytest.raises(QueueFull) as refusal:
            submit(workers)
        assert 1 <= int(refusal.value.headers["Retry-After"]) <= 120
        gate.set()
        for job in jobs:
            assert len(await collect(job)) == 3
        wait_until(lambda: workers.queue.running == 0)
        assert len(await collect(submit(workers))) == 3
        workers.close()

    asyncio.run(scenario())


def test_a_cancelled_job_frees_its_place_in_the_queue(gate: threading.Event) -> None:
    """A client that has left keeps no other out, and its job never runs."""

    async def scenario() -> None:
        engine = ScriptedEngine(gate=gate)
        workers = Workers([engine], queue_size=1)
        running, waiting = submit(workers), submit(workers)
        wait_until(lambda: workers.queue.running == 1)
        workers.queue.discard(waiting)
        assert await collect(waiting) == []
        later = submit(workers)
        gate.set()
        await collect(running)
        await collect(later)
        workers.close()

        assert waiting.started is None
        assert len(engine.ended) == 2

    asyncio.run(scenario())


def test_a_cancelled_job_ends_within_a_token() -> None:
    """The engine checks between tokens whether it was cancelled."""

    async def scenario() -> None:
        engine = ScriptedEngine(step_s=0.01)
        workers = Workers([engine], queue_size=1)
        job = submit(workers, 500)
        async for _ in tokens_of(job):
            break
        workers.queue.discard(job)
        generated = engine.generated
        wait_until(lambda: workers.queue.running == 0)
        workers.close()

        assert engine.generated <= generated + 1

    asyncio.run(scenario())


def test_an_engine_that_raises_fails_its_own_job_only() -> None:
    """The thread lives on for the next job."""

    async def scenario() -> None:
        engine = ScriptedEngine(fail_after=1)
        workers = Workers([engine], queue_size=4)
        first, second = submit(workers), submit(workers, 1)
        with pytest.raises(RuntimeError):
            await collect(first)
        assert len(await collect(second)) == 1
        workers.close()

    asyncio.run(scenario())


def test_close_cancels_running_and_waiting_jobs(gate: threading.Event) -> None:
    """Each running or waiting job gets an error, and no new job is taken."""

    async def scenario() -> None:
        workers = Workers([ScriptedEngine(gate=gate)], queue_size=4)
        jobs = [submit(workers), submit(workers)]
        workers.close()

        for job in jobs:
            with pytest.raises(ServerDraining):
                await collect(job)
        with pytest.raises(ServerDraining):
            submit(workers)

    asyncio.run(scenario())
