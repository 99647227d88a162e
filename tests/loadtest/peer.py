"""A small OpenAI-compatible server that is not ours: one request at a time, with chosen delays."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.server.scripted import listening


@dataclass
class Peer:
    """A peer's behaviour. Requests are numbered from 0.

    service_s: the time of each request.
    stalls: further seconds, by the request's number.
    statuses: an error status instead of an answer, by the request's number.
    pieces, tokens: pieces of text in each answer, and tokens in all.
    usage: whether a stream ends with usage.
    cut_short: whether streams end without [DONE].
    models: whether there is a list of models.
    key: the key that /v1/models demands.
    gate: no request is answered before it is set.
    bodies: the bodies so far.
    """

    service_s: float = 0.0
    stalls: dict[int, float] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    pieces: int = 4
    tokens: int = 4
    usage: bool = False
    cut_short: bool = False
    models: bool = True
    key: str | None = None
    gate: threading.Event | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        self._worker = asyncio.Lock()
        return Starlette(
            routes=[
                Route("/v1/models", self._list),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _list(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no", "type": "invalid_request_error"}}, 401)
        if not self.models:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse({"object": "list", "data": [{"id": "other-model", "object": "model"}]})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        if status := self.statuses.get(number):
            # A control character for a terminal, and half a character, which no file can hold.
            error = {"message": "<b>too\x1bmany\ud800</b>", "code": "queue_full"}
            return Response(json.dumps({"error": error}), status)
        async with self._worker:
            await asyncio.sleep(self.service_s + self.stalls.get(number, 0.0))
            while self.gate and not self.gate.is_set():
                await asyncio.sleep(0.01)
        if not body.get("stream"):
            return JSONResponse({"choices": [{"text": "word " * self.pieces, "finish_reason": "length"}]})
        return StreamingResponse(self._events("messages" in body), media_type="text/event-stream")

    async def _events(self, chat: bool) -> AsyncIterator[str]:
        if chat:
            yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for _ in range(self.pieces):
            text = {"delta": {"content": "word\u2028"}} if chat else {"text": "word\u2028"}
            yield _event({"choices": [{**text, "finish_reason": None}]})
            # Each piece in a packet of its own.
            await asyncio.sleep(0.001)
        if self.cut_short:
            return
        yield _event({"choices": [{"text": "", "delta": {}, "finish_reason": "length"}]})
        if self.usage:
            yield _event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": self.tokens}})
        yield "data: [DONE]\n\n"


@contextmanager
def served(peer: Peer) -> Iterator[str]:
    """Serve in a thread, on a free port; yield the address."""
    with listening(peer.app(), grace_s=1) as url:
        yield url


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
