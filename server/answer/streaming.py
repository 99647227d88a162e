"""A generation as what the client reads: one object, or server-sent events."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.answer.formats import Answer, Format, best
from server.answer.generation import Generation, Piece
from server.errors import as_api_error
from server.jsonwire import encode
from server.protocol.request import GenerationRequest, StreamOptions
from server.settings import Settings
from server.work.job import Job

logger = logging.getLogger("griffin")

SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"
# A comment: clients skip it, proxies see that the connection is alive.
KEEP_ALIVE = b": keep-alive\n\n"
# For a reader who is slow to take the last words, beyond the request's deadline.
LAST_WORDS_S = 5
# Between looks for a disconnect that could have gone unseen.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 8.0
# Tokens whose objects take a thread's time rather than the event loop's.
MUCH = 2_000
PART_BYTES = 2**16


async def deliver(
    generation: Generation, format: Format, request: Request, body: GenerationRequest, headers: dict[str, str]
) -> Response:
    """The answer in the way the client wants it."""
    if not body.stream:
        return await whole(generation, format, request, headers)
    settings: Settings = request.app.state.service.settings
    content = events(generation, format, request, body.stream_options or StreamOptions(), settings.keep_alive)
    return Timed(generation, content, "text/event-stream", {**SSE_HEADERS, **headers})


class Timed(StreamingResponse):
    """Sends as fast as the client reads, until the request's deadline. A client that leaves early is noticed here."""

    def __init__(
        self, generation: Generation, content: AsyncIterator[bytes], media_type: str, headers: dict[str, str]
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = self._generation.job.deadline - time.monotonic() + LAST_WORDS_S
        try:
            async with asyncio.timeout(deadline):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("a reader was too slow; its connection is closed")
        finally:
            # A generator that was never started, or is left at a yield, runs no finally of its own in time.
            self._generation.close()


async def events(
    generation: Generation, format: Format, request: Request, options: StreamOptions, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    """A chunk for each piece, a comment when there is none for long, a usage chunk if wanted, ``[DONE]``."""
    frame = _frame(generation, format, format.part)
    include_usage, complete = bool(options.include_usage), False
    continuous = include_usage and options.continuous_usage_stats
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    async with _cancelled_when_gone(request, generation.job), aclosing(generation.pieces(keep_alive_s)) as pieces:
        try:
            async for piece in pieces:
                if piece is None:
                    yield KEEP_ALIVE
                    continue
                if continuous:
                    usage = {"usage": generation.tally.usage_of(piece.prompt, piece.sample).model_dump()}
                yield await _worked_out(len(piece.tokens), _chunk, frame, format, piece, usage)
            complete = generation.job.answered
        except Exception as error:
            # The status line is long gone; the SDK raises this object's message.
            yield _event(as_api_error(error).body())
    if complete and include_usage:
        yield _event({**frame, "choices": [], **_reports(generation)})
    yield DONE


async def whole(generation: Generation, format: Format, request: Request, headers: dict[str, str]) -> Response:
    """All of it at once."""
    answers: dict[tuple[int, int], Answer] = {}
    async with _cancelled_when_gone(request, generation.job), aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            if piece is not None:
                answers.setdefault((piece.prompt, piece.sample), Answer(piece.prompt)).add(piece)
    if not generation.job.answered:
        # Nobody reads this; 499 is what proxies log for a client that left.
        return Response(status_code=499)
    ordered = best([answers[key] for key in sorted(answers)], generation.delivery.choices)
    body = await _worked_out(len(ordered) * generation.tally.usage().total_tokens, _object, generation, format, ordered)
    return Timed(generation, _parts(body), "application/json", {"Content-Length": str(len(body)), **headers})


async def _worked_out(size: int, work: Callable[..., bytes], *arguments: Any) -> bytes:
    """On the event loop if it is little, in a thread if it would keep all others waiting."""
    return work(*arguments) if size < MUCH else await asyncio.to_thread(work, *arguments)


async def _parts(body: bytes) -> AsyncGenerator[bytes, None]:
    """Handed over as they are read: a large body does not wait in memory for a reader who has none."""
    for start in range(0, len(body), PART_BYTES):
        yield body[start : start + PART_BYTES]


def _object(generation: Generation, format: Format, answers: list[Answer]) -> bytes:
    value = {
        **_frame(generation, format, format.whole),
        "choices": [format.choice(index, answer) for index, answer in enumerate(answers)],
        **format.extras(),
        **_reports(generation),
    }
    return encode(value)


def _chunk(frame: dict[str, Any], format: Format, piece: Piece, usage: dict[str, Any]) -> bytes:
    return _event({**frame, **format.chunk(piece), **usage})


def _frame(generation: Generation, format: Format, name: str) -> dict[str, Any]:
    return {
        "id": format.prefix + generation.id,
        "object": name,
        "created": generation.created,
        "model": generation.delivery.model_name,
    }


def _reports(generation: Generation) -> dict[str, Any]:
    tally = generation.tally
    return {
        "usage": tally.usage().model_dump(),
        "griffin": tally.griffin_report().model_dump(),
        "metrics": tally.timing_report().model_dump(),
    }


@asynccontextmanager
async def _cancelled_when_gone(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancel the job when the client disconnects: the framework does so for streams only, and not in all versions."""

    async def watch() -> None:
        patience_s = FIRST_LOOK_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    if (await request.receive())["type"] == "http.disconnect":
                        job.cancel()
                        return
            # uvicorn stops reading once bytes come behind a request, and then sees no disconnect either; asking
            # again makes it read on. Seldom: what it reads, it keeps.
            patience_s = min(2 * patience_s, LONGEST_LOOK_S)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode(value)
