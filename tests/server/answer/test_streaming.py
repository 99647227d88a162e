"""A client that is gone before the first event, which real sockets reach only by chance."""

import asyncio
import re
import threading
import time
from typing import Any

from fastapi import Request

from griffin import Pruning, Sampling
from server.answer.formats.completion import CompletionFormat
from server.answer.streaming import Timed, events
from server.loader import Loaded
from server.protocol.completion import CompletionRequest
from server.service import Service
from server.settings import Settings
from server.work.job import Ask, Job
from tests.server.answer.generations import generation_of
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, wait_until


def test_a_stream_that_never_started_is_given_up() -> None:
    """The job is cancelled and counted, although no event was ever written."""
    gate = threading.Event()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.sleep(1)

    async def scenario() -> None:
        service = Service(Settings())
        service.models.room.serve(
            service.models.slots[0], Loaded("scripted", CharacterTokenizer(), [ScriptedEngine(gate=gate)])
        )
        model = service.models.loaded[0]
        now = time.monotonic()
        job = Job((Ask([1], [Sampling()], Pruning()),), now, now + 60)
        model.workers.queue.submit(job)
        generation = generation_of(job, service)
        format = CompletionFormat(generation, CompletionRequest(prompt=["x"]))
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "POST", "headers": []}
        content = events(generation, format, Request(scope, receive), 15)
        await Timed(generation, content, "text/event-stream", {})(scope, receive, send)

        assert job.cancelled()
        await asyncio.to_thread(wait_until, lambda: model.workers.queue.running == 0)
        counted = r'griffin_client_disconnects_total\{model_name="scripted",phase="\w+"\} 1\.0'
        assert re.search(counted, service.metrics.expose().decode())
        service.close()

    asyncio.run(scenario())
