"""Threads that each own an engine. They take jobs from one queue, and compare answers while there are none."""

import threading
import time
from collections.abc import Callable, Sequence

from griffin.errors import Cancelled, InvalidRequest, OutOfMemory
from server.errors import ServerDraining
from server.work.comparisons import QUIET_S, Comparisons
from server.work.job import Ask, EngineLike, Job
from server.work.queue import Queue
from server.work.recovery import Recovery, forget_frames
from server.work.shadow import Shadow, Shadows


class Workers:
    """One thread for each engine.

    queue: gives jobs. recovery: knows which engines work. comparisons: compares answers in idle time.
    """

    def __init__(
        self,
        engines: Sequence[EngineLike],
        queue_size: int,
        on_restart: Callable[[], None] = lambda: None,
        shadows: Shadows | None = None,
        quiet_s: float = QUIET_S,
    ) -> None:
        """
        Args:
            queue_size: number of jobs that may wait.
            on_restart: called whenever an engine was rebuilt.
            shadows: the answers to compare; None: nothing is compared.
            quiet_s: seconds without a request before an answer is compared.
        """
        self._changed, self._closed = threading.Condition(), threading.Event()
        self._on_restart = on_restart
        self.recovery = Recovery(len(engines), self._changed, self._closed)
        self.queue = Queue(queue_size, self.recovery, self._changed)
        width = engines[0].accounting.width
        self.comparisons = Comparisons(shadows, width, self.queue, self.recovery, self._changed, quiet_s)
        # Any engine will do, for what all have in common.
        self.engine = engines[0]
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"worker-{index}", daemon=True)
            for index, engine in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    def check(self, asks: Sequence[Ask]) -> None:
        """
        Raises:
            InvalidRequest: no engine can take one of the prompts; see ``check`` and ``require`` of the engine.
        """
        for ask in asks:
            self.engine.require(ask.pruning)
            # The samplings of a prompt differ only in their seeds.
            self.engine.check(ask.prompt_ids, next(iter(ask.samplings), None), ask.scoring)

    def close(self) -> None:
        """Cancel everything, send waiting clients an error, and let the threads end."""
        with self._changed:
            self._closed.set()
            self.queue.drain()
            self.queue.dismiss(ServerDraining(), running=True)
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads after ``close``. A thread inside a long prompt chunk may take longer than the wait."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self, engine: EngineLike) -> None:
        while (task := self._take()) is not None:
            if isinstance(task, Job):
                self._run(engine, task)
            else:
                self._compare(engine, task)

    def _take(self) -> Job | Shadow | None:
        """The next work; waits until there is some. None ends the thread."""
        with self._changed:
            while not (self.queue.has_job or self._closed.is_set()):
                if (due_in_s := self.comparisons.due_in_s()) == 0:
                    return self.comparisons.take()
                self._changed.wait(due_in_s)
            return None if self._closed.is_set() else self.queue.take()

    def _run(self, engine: EngineLike, job: Job) -> None:
        """Run a job. Whatever is raised fails only this job; the thread continues with the next one."""
        job.started, failure = time.monotonic(), None
        try:
            job.run(engine)
        except Cancelled:
            pass
        except InvalidRequest as refusal:
            job.mailbox.post(refusal)
        except BaseException as error:
            failure = type(error)
            forget_frames(error)
            job.mailbox.post(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self._finish(job, failure)
        job.mailbox.post(None)
        if failure:
            self._rebuild(engine, failure.__name__, job.request_id)

    def _finish(self, job: Job, failure: type[BaseException] | None) -> None:
        assert job.started is not None
        with self._changed:
            self.queue.finish(job, time.monotonic() - job.started, failed=failure is not None)
            if failure:
                self.recovery.lose()
                # One request may be too large for the memory; the engine is still good.
                self.recovery.request_failed(counts=failure is not OutOfMemory)
            elif job.complete:
                self.recovery.request_succeeded()

    def _compare(self, engine: EngineLike, shadow: Shadow) -> None:
        """Compare an answer. A comparison never counts as a request, even if it fails."""
        if failure := self.comparisons.run(engine, shadow):
            self._rebuild(engine, f"{failure}, while comparing an answer", "")

    def _rebuild(self, engine: EngineLike, failure: str, request_id: str) -> None:
        self.recovery.rebuild(engine, failure, request_id, self._on_restart, self.queue.dismiss)
