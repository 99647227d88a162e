"""A format writes all of an endpoint's stream, so another API needs only another format."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from griffin import Pruning, Sampling
from server.answer.collected import Answer
from server.answer.formats.format import event
from server.answer.streaming import events, whole
from server.answer.texts import Piece
from server.errors import ApiError
from server.jsonwire import encode
from server.loader import Loaded
from server.service import Service
from server.settings import Settings
from server.work.job import Ask, Job
from tests.server.answer.generations import generation_of
from tests.server.scripted import CharacterTokenizer, ScriptedEngine


class NamedEvents:
    """A format like those of newer APIs: named events, several for a piece, an opening event and no ``[DONE]``."""

    def open(self) -> bytes:
        return event({"status": "in_progress"}, "created")

    def piece(self, piece: Piece) -> bytes:
        delta = event({"delta": piece.text}, "delta")
        return delta + event({"reason": piece.finish_reason}, "stop") if piece.finish_reason else delta

    def close(self) -> bytes:
        return event({"status": "completed"}, "completed")

    def error(self, error: ApiError) -> bytes:
        return event({"code": error.code}, "error")

    def whole(self, answers: Sequence[Answer]) -> bytes:
        return encode({"output": [answer.text for answer in answers]})


def answered(engine: ScriptedEngine, *, stream: bool) -> str:
    """The answer of three tokens, as the format writes it."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def scenario() -> str:
        service = Service(Settings())
        service.models.room.serve(service.models.slots[0], Loaded("scripted", CharacterTokenizer(), [engine]))
        now = time.monotonic()
        job = Job((Ask([1], [Sampling(max_tokens=3)], Pruning()),), now, now + 60)
        generation, request = generation_of(job, service), Request({"type": "http"}, receive)
        with service.models.loaded[0].workers.queue.reserve():
            service.models.loaded[0].workers.queue.submit(job)
        if stream:
            parts = [part async for part in events(generation, NamedEvents(), request, 15)]
        else:
            response = await whole(generation, NamedEvents(), request, {})
            parts = [part async for part in response.body_iterator]  # type: ignore[attr-defined]
        service.close()
        return b"".join(parts).decode()

    return asyncio.run(scenario())


def test_a_stream_is_what_its_format_writes() -> None:
    """The server adds no byte."""
    assert answered(ScriptedEngine(), stream=True) == (
        'event: created\ndata: {"status":"in_progress"}\n\n'
        'event: delta\ndata: {"delta":"a"}\n\n'
        'event: delta\ndata: {"delta":"b"}\n\n'
        'event: delta\ndata: {"delta":"c"}\n\n'
        'event: stop\ndata: {"reason":"length"}\n\n'
        'event: completed\ndata: {"status":"completed"}\n\n'
    )


def test_an_error_ends_a_stream_as_its_format_says() -> None:
    """The stream ends after the error."""
    assert answered(ScriptedEngine(fail_after=1), stream=True) == (
        'event: created\ndata: {"status":"in_progress"}\n\n'
        'event: delta\ndata: {"delta":"a"}\n\n'
        'event: error\ndata: {"code":"internal_error"}\n\n'
    )


def test_a_whole_answer_is_what_its_format_writes() -> None:
    """The answer is one body."""
    assert answered(ScriptedEngine(), stream=False) == '{"output":["abc"]}'
