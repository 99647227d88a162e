"""Shadow quality: answers are compared only in idle time, give way to requests at once, and never hurt them."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from griffin import Comparison, Pruning, Sampling, Scoring, Selection, Verification
from griffin.neurons import Kept
from server.metrics import Metrics
from server.settings import Settings
from server.work.job import Ask, Job, Made
from server.work.shadow import FAILURES, MOST, MOST_TOKENS, Shadows
from server.work.workers import Workers
from tests.server.client import metric, post
from tests.server.scripted import EXPERTS, ScriptedEngine, served, wait_until

SELECTION = Selection(0.0, "cafe", 2, Kept(tuple(EXPERTS)))
HALF = Ask([1, 2], [Sampling(max_tokens=3)], Pruning(0.5))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds comparisons back; the fixture opens it at its end in any case."""
    event = threading.Event()
    yield event
    event.set()


def shadows(share: float = 1.0) -> Shadows:
    return Shadows(share, Metrics(), "m")


def count(metrics: Metrics, outcome: str) -> float:
    value = metrics.registry.get_sample_value("griffin_shadow_requests_total", {"model_name": "m", "outcome": outcome})
    return value or 0.0


async def generate(workers: Workers, tokens: int = 3) -> int:
    """Run one request; return how many tokens it got."""
    now = time.monotonic()
    job = Job((Ask([1], [Sampling(max_tokens=tokens)], Pruning()),), now, now + 60)
    with workers.queue.reserve():
        workers.queue.submit(job)
    made = 0
    while (event := await job.mailbox.next()) is not None:
        made += isinstance(event, Made)
    return made


@pytest.mark.parametrize(
    ("ask", "share", "drawn"),
    [
        (HALF, 1.0, True),
        (HALF, 0.0, False),
        (Ask([1, 2], [], Pruning()), 1.0, False),
        (Ask([1, 2], [], Pruning(0.5), Scoring()), 1.0, False),
        (Ask([1, 2], [], Pruning(0.5), None, Verification("lossless")), 1.0, False),
    ],
)
def test_which_answers_are_drawn(ask: Ask, share: float, drawn: bool) -> None:
    """Answers with pruned neurons in mode fast are drawn by the share, unless the prompt was scored."""
    assert shadows(share).draws(ask, 100) is drawn


def test_a_share_of_them_is_drawn() -> None:
    """Answers are drawn at random: about a quarter of a thousand."""
    quarter = shadows(0.25)

    assert 150 < sum(quarter.draws(HALF, 100) for _ in range(1000)) < 350


def test_the_newest_answers_are_kept() -> None:
    """The oldest are dropped, by number and by tokens. An answer that cannot be compared is not kept, and an
    interrupted one counts as the oldest.
    """
    metrics = Metrics()
    waiting = Shadows(1.0, metrics, "m")
    for first in range(MOST + 2):
        waiting.put(Ask([first], [], Pruning(0.5)), SELECTION, [1, 2])
    waiting.put(HALF, None, [1, 2])
    waiting.put(HALF, SELECTION, [1])
    assert (len(waiting), count(metrics, "dropped")) == (MOST, 2)

    oldest = waiting.take()
    assert oldest.prompt_ids == [2]
    assert oldest.pruning.reuse is SELECTION
    waiting.interrupted(oldest)
    assert waiting.take() is oldest
    waiting.put(HALF, SELECTION, [1, 2])
    waiting.interrupted(oldest)
    assert (len(waiting), count(metrics, "dropped")) == (MOST, 3)
    assert waiting.take().prompt_ids == [3]

    waiting.put(Ask([7] * (MOST_TOKENS - 4), [], Pruning(0.5)), SELECTION, [1, 2])
    assert len(waiting) == 1
    waiting.put(Ask([7] * MOST_TOKENS, [], Pruning(0.5)), SELECTION, [1, 2])
    assert len(waiting) == 0


def test_an_answer_is_compared_and_observed() -> None:
    """It is compared with its own neurons and observed by sparsity, and counts as no request."""
    with served(engine := ScriptedEngine(), shadow_share=1.0) as url:
        before = metric(url, "griffin_shadow_requests_total", outcome="compared")
        post(url, prompt="xy", n=2, max_tokens=4, sparsity=0.5)
        post(url, prompt="xy", max_tokens=4)
        post(url, prompt="xy", max_tokens=1, sparsity=0.5)
        wait_until(lambda: metric(url, "griffin_shadow_requests_total", outcome="compared") == 1)
        figures = [
            metric(url, f"griffin_shadow_{name}_sum", sparsity="0.5")
            for name in ("kl_nats", "top1_agreement_ratio", "perplexity_ratio")
        ]
        requests = metric(url, "griffin_request_success_total")

    ((prompt, ids, pruning),) = engine.compared
    assert (prompt, ids) == ([120, 121], [97, 98, 99, 100])
    assert pruning.reuse
    assert pruning.reuse.expert_set == "cafe"
    assert figures == [0.25, 0.75, 1.5]
    assert (before, requests) == (0, 3)


def test_comparing_is_off_by_default() -> None:
    """By default no answer is kept, and the metrics have no such series, which would lengthen each scrape."""
    off, on = Metrics(), Metrics()
    Shadows(Settings().shadow_share, off, "m")
    Shadows(0.1, on, "m")

    assert Settings().shadow_share == 0
    for sparsity in ("0.25", "0.5", "0.75", "other"):
        labels = {"model_name": "m", "sparsity": sparsity}
        assert off.registry.get_sample_value("griffin_shadow_kl_nats_count", labels) is None
        assert on.registry.get_sample_value("griffin_shadow_kl_nats_count", labels) == 0


def test_answers_that_are_not_kept() -> None:
    """An answer whose client has left, and one that was verified. Either would be compared first, as it is older."""
    leaving = {"prompt": "x", "max_tokens": 500, "sparsity": 0.5, "stream": True}
    with served(engine := ScriptedEngine(step_s=0.02), shadow_share=1.0) as url:
        with httpx.stream("POST", f"{url}/v1/completions", json=leaving) as response:
            next(response.iter_lines())
        wait_until(lambda: metric(url, "griffin_client_disconnects_total") == 1)
        post(url, prompt="y", max_tokens=4, sparsity=0.5, griffin={"mode": "lossless"})
        post(url, prompt="z", max_tokens=4, sparsity=0.5)
        wait_until(lambda: metric(url, "griffin_shadow_requests_total", outcome="compared") == 1)

    assert [prompt for prompt, _, _ in engine.compared] == [[ord("z")]]


def test_a_request_interrupts_a_comparison(gate: threading.Event) -> None:
    """The request is answered although the gate stays shut; the comparison starts again later and is counted once."""

    async def scenario() -> None:
        metrics, engine = Metrics(), ScriptedEngine(compare_gate=gate)
        workers = Workers([engine], 1, shadows=Shadows(1.0, metrics, "m"), quiet_s=0)
        workers.comparisons.later(HALF, SELECTION, [5, 6])
        wait_until(lambda: len(engine.compared) == 1)

        assert workers.queue.idle
        assert await generate(workers) == 3
        wait_until(lambda: len(engine.compared) == 2)
        assert count(metrics, "compared") == 0
        gate.set()
        wait_until(lambda: count(metrics, "compared") == 1)
        assert engine.compared[0] == engine.compared[1]
        workers.close()

    asyncio.run(scenario())


def test_a_request_that_is_refused_interrupts_it_for_a_moment(gate: threading.Event) -> None:
    """The request holds a place in the queue while it is prepared; the comparison restarts when the place is free."""

    async def scenario() -> None:
        engine = ScriptedEngine(compare_gate=gate)
        workers = Workers([engine], 1, shadows=shadows(), quiet_s=0)
        workers.comparisons.later(HALF, SELECTION, [5, 6])
        wait_until(lambda: len(engine.compared) == 1)
        with workers.queue.reserve():
            await asyncio.sleep(0.1)
            assert len(engine.compared) == 1
        wait_until(lambda: len(engine.compared) == 2)
        workers.close()

    asyncio.run(scenario())


def test_no_answer_is_compared_while_a_request_runs(gate: threading.Event) -> None:
    """No worker compares while another one runs a request, and one that compares stops when another takes a request."""

    async def scenario() -> None:
        running = threading.Event()
        engines = [ScriptedEngine(gate=running, compare_gate=gate) for _ in range(2)]
        workers = Workers(engines, 4, shadows=shadows(), quiet_s=0)
        job = asyncio.create_task(generate(workers))
        await asyncio.to_thread(wait_until, lambda: workers.queue.running == 1)
        workers.comparisons.later(HALF, SELECTION, [5, 6])
        await asyncio.sleep(0.2)
        assert [engine.compared for engine in engines] == [[], []]

        running.set()
        assert await job == 3
        await asyncio.to_thread(wait_until, lambda: any(engine.compared for engine in engines))
        running.clear()
        job = asyncio.create_task(generate(workers))
        await asyncio.to_thread(wait_until, lambda: workers.queue.running == 1)
        # The worker that compared has stopped, and waits until the other is done.
        begun = sum(len(engine.compared) for engine in engines)
        await asyncio.sleep(0.2)
        assert sum(len(engine.compared) for engine in engines) == begun == 1
        running.set()
        assert await job == 3
        await asyncio.to_thread(wait_until, lambda: sum(len(engine.compared) for engine in engines) == 2)
        workers.close()

    asyncio.run(scenario())


def test_comparing_waits_for_a_quiet_time() -> None:
    """A comparison starts only after a quiet time, so a request that follows soon meets none."""

    async def scenario() -> None:
        engine = ScriptedEngine()
        workers = Workers([engine], 1, shadows=shadows(), quiet_s=60)
        await generate(workers)
        workers.comparisons.later(HALF, SELECTION, [5, 6])
        await generate(workers)
        workers.close()
        workers.join(60)

        assert engine.compared == []

    asyncio.run(scenario())


def test_a_comparison_does_not_hold_up_the_end(gate: threading.Event) -> None:
    """A server that shuts down gives its comparison up."""

    async def scenario() -> None:
        engine = ScriptedEngine(compare_gate=gate)
        workers = Workers([engine], 1, shadows=shadows(), quiet_s=0)
        workers.comparisons.later(HALF, SELECTION, [5, 6])
        wait_until(lambda: engine.compared)
        workers.queue.drain()
        workers.close()
        workers.join(60)
        assert not any(thread.name == "worker-0" for thread in threading.enumerate())

    asyncio.run(scenario())


def test_a_failed_comparison_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    """Each failure is one line in the log, the engine is rebuilt and stays ready; after several in a row comparing
    stops.
    """

    async def scenario() -> None:
        metrics = Metrics()
        engine = ScriptedEngine(compare_failure=RuntimeError("boom"))
        waiting = Shadows(1.0, metrics, "m")
        workers = Workers([engine], 1, shadows=waiting, quiet_s=0)
        for attempt in range(1, FAILURES + 1):
            workers.comparisons.later(HALF, SELECTION, [5, 6])
            await asyncio.to_thread(wait_until, lambda attempt=attempt: engine.rebuilt == attempt)
            workers.recovery.require_health()
        workers.comparisons.later(HALF, SELECTION, [5, 6])

        assert await generate(workers) == 3
        assert (count(metrics, "dropped"), len(waiting), waiting.draws(HALF, 100)) == (FAILURES, 0, False)
        workers.close()
        workers.join(60)
        assert len(engine.compared) == FAILURES

    with caplog.at_level(logging.ERROR, "griffin"):
        asyncio.run(scenario())
    lines = [record.getMessage() for record in caplog.records]
    failed = "worker-0 failed (RuntimeError, while comparing an answer); rebuilding it"
    assert sorted(lines) == [
        f"{FAILURES} comparisons with the full model failed in a row; comparisons are switched off",
        *[failed] * FAILURES,
    ]  # fmt: skip
    assert not any(record.exc_info for record in caplog.records)


def test_an_impossible_comparison_counts_as_dropped() -> None:
    """The library returns None for an answer that it cannot compare."""
    metrics = Metrics()
    waiting = Shadows(1.0, metrics, "m")
    waiting.put(HALF, SELECTION, [1, 2])
    taken = waiting.take()
    waiting.compared(taken, None)
    waiting.compared(taken, Comparison(1, 0.5, 1.0, 1.0))

    assert (count(metrics, "dropped"), count(metrics, "compared")) == (1, 1)
