"""While an engine is rebuilt after a failure, other requests wait or are told to come again."""

import gc
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from griffin import Engine
from server.errors import EngineFailed
from server.work.workers import Workers
from tests.server.client import metric, post
from tests.server.scripted import ScriptedEngine, served, wait_until
from tests.tiny import tiny_model

POISON = 100


class Failing(Engine):
    """A real engine that fails on one prompt. Its rebuild waits until ``gate`` is set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tiny_model("llama"), **options)
        self.gate, self.rebuilding = threading.Event(), threading.Event()
        make = self._assemble

        def slowly() -> Any:
            self.rebuilding.set()
            assert self.gate.wait(30)
            return make()

        self._assemble = slowly  # type: ignore[assignment]

    @contextmanager
    def read(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        with super().read(prompt_ids, *arguments, **options) as prompt:
            if POISON in prompt_ids:
                raise RuntimeError("a bug")
            yield prompt


@pytest.mark.parametrize("workers", [1, 2])
def test_others_wait_while_engines_are_rebuilt(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Only the failing request gets a 500. Requests that arrive meanwhile are checked, wait, and are answered."""
    engines = [Failing() for _ in range(workers)]
    with served(*engines) as url, ThreadPoolExecutor(24) as pool:
        broken = [pool.submit(post, url, prompt=[POISON], max_tokens=1) for _ in range(workers)]
        for engine in engines:
            assert engine.rebuilding.wait(60)
        bodies = [{"prompt": [1, 2, 3 + n % 3], "max_tokens": 2, "sparsity": (n % 2) / 2, "stream": n % 3 == 0}
                  for n in range(20)]  # fmt: skip
        others = [pool.submit(post, url, **body) for body in bodies]
        wait_until(lambda: metric(url, "griffin_num_requests_waiting") == len(others))
        unmeasured = post(url, sparsity="auto", griffin={"method": "griffin"})
        wrong = [post(url, prompt=[1] * 300), post(url, prompt=[999]), unmeasured]
        ready, models = httpx.get(f"{url}/ready"), httpx.get(f"{url}/v1/models")
        for engine in engines:
            engine.gate.set()

        assert [answer.result().status_code for answer in broken] == [500] * workers
        assert [answer.result().status_code for answer in others] == [200] * len(others)
        assert all('"error"' not in answer.result().text for answer in others)
        assert [answer.status_code for answer in wrong] == [400] * 3
        assert (ready.status_code, models.status_code) == (200, 200)
        assert metric(url, "griffin_worker_restarts_total") == workers
    assert "AttributeError" not in caplog.text


def test_where_no_engine_can_be_rebuilt_others_are_told_to_come_again() -> None:
    """Each gets 503 with Retry-After at any moment, never a 500 that advises against a retry."""
    engine = ScriptedEngine(fail_after=1, rebuild_failures=3)
    with served(engine) as url, ThreadPoolExecutor(8) as pool:
        assert post(url, max_tokens=5).status_code == 500
        answers = [answer for _ in range(5) for answer in pool.map(lambda _: post(url, max_tokens=1), range(8))]

    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "engine_failed"
            assert int(answer.headers["retry-after"]) > 0
            assert "x-should-retry" not in answer.headers


def test_a_job_does_not_slip_into_the_queue_of_a_broken_engine() -> None:
    """The last engine may fail between the reservation of a place and the job's arrival."""
    engine = ScriptedEngine()
    workers = Workers([engine], queue_size=3)
    try:
        with workers.queue.reserve():
            workers.recovery._broken = 1
            with pytest.raises(EngineFailed):
                workers.queue.submit(None)  # type: ignore[arg-type]
    finally:
        workers.close()


def test_constants_are_available_during_a_rebuild() -> None:
    """Sizes, counts and checks stay available, and the old runner's memory is freed before the new one takes any."""
    engine = Failing()
    old = engine._assembly.state.cache
    thread = threading.Thread(target=engine.rebuild)
    thread.start()
    assert engine.rebuilding.wait(60)

    gc.collect()
    held = sys.getrefcount(old)
    engine.check([1, 2, 3])
    sizes = (engine.accounting.layers, engine.context_length, engine.vocabulary_size)
    with pytest.raises(Exception, match="rebuilt"), engine.read([1, 2]):
        pass
    engine.gate.set()
    thread.join()

    # One reference is ours, one belongs to the call of getrefcount.
    assert held == 2
    assert sizes == (3, 256, 128)
    assert len(list(engine.generate([1, 2, 3]))) > 0
