"""Sends an answer to its reader, as a stream or as one body, in any format."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.answer.collected import Collected
from server.answer.disconnect import disconnected
from server.answer.formats.format import Format
from server.answer.generation import Generation
from server.errors import as_api_error
from server.settings import Settings
from server.work.job import Job

logger = logging.getLogger("griffin")

SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# A comment line: clients skip it, and proxies see that the connection is alive.
KEEP_ALIVE = b": keep-alive\n\n"
# Seconds beyond the request's deadline, for a reader that takes the last bytes slowly.
LAST_WORDS_S = 5
# With more tokens than this, writing takes so long that it must not run on the event loop.
MUCH = 2_000
PART_BYTES = 2**16


async def deliver(
    generation: Generation, format: Format, request: Request, *, stream: bool, headers: dict[str, str]
) -> Response:
    """The answer as a stream of events, or as one body."""
    if not stream:
        return await whole(generation, format, request, headers)
    settings: Settings = request.app.state.service.settings
    content = events(generation, format, request, settings.keep_alive)
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
    generation: Generation, format: Format, request: Request, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    """The stream. A comment is sent when there was no piece for so many seconds."""
    async with _cancelled_when_gone(request, generation.job), aclosing(generation.pieces(keep_alive_s)) as pieces:
        if opening := format.open():
            yield opening
        try:
            async for piece in pieces:
                yield KEEP_ALIVE if piece is None else await _worked_out(len(piece.tokens), format.piece, piece)
        except Exception as error:
            yield format.error(as_api_error(error))
    if generation.job.answered:
        yield format.close()


async def whole(generation: Generation, format: Format, request: Request, headers: dict[str, str]) -> Response:
    """The whole answer in one response."""
    collected = Collected()
    async with _cancelled_when_gone(request, generation.job), aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            if piece is not None:
                collected.add(piece)
    if not generation.job.answered:
        # Nobody reads this response; proxies log 499 for a client that left.
        return Response(status_code=499)
    answers = collected.best(generation.delivery.choices)
    body = await _worked_out(len(answers) * generation.report.usage().total_tokens, format.whole, answers)
    return Timed(generation, _parts(body), "application/json", {"Content-Length": str(len(body)), **headers})


async def _worked_out(size: int, work: Callable[..., bytes], *arguments: Any) -> bytes:
    """Run small work on the event loop, and large work in a thread, so that other requests do not wait."""
    return work(*arguments) if size < MUCH else await asyncio.to_thread(work, *arguments)


async def _parts(body: bytes) -> AsyncGenerator[bytes, None]:
    """Hand a body over in parts as they are read, so that a large one does not pile up for a slow reader."""
    for start in range(0, len(body), PART_BYTES):
        yield body[start : start + PART_BYTES]


@asynccontextmanager
async def _cancelled_when_gone(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancel the job when the client disconnects."""

    async def watch() -> None:
        await disconnected(request)
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
