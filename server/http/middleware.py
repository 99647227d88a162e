"""What every request passes before its route: a name and a log line, a key, room in the queue, a body limit."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from server.errors import (
    BodyTimeout,
    BodyTooLarge,
    ModelLoading,
    ServerDraining,
    TooManyConnections,
    Unauthorized,
    UnsupportedEncoding,
    UnsupportedUpgrade,
)

logger = logging.getLogger("griffin")

REQUEST_ID = "x-request-id"
# Ids that a client may give its request; others could forge a log line.
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Answers of a server that starts or stops; probes expect them.
PASSING = (ModelLoading.code, ServerDraining.code)
# Headers that clients use for keys, besides Authorization: Bearer.
KEY_HEADERS = ("x-api-key", "api-key")
OPERATIONS = ("/health", "/ready", "/metrics")


class RequestLog:
    """Gives each request an id, shown in the answer and all log lines, and writes one log line at the request's end.

    Routes add fields to the line through ``scope["state"]["log"]``. Requests to the ``routine`` paths (probes, files of
    the page) are logged at level debug, unless their status is unexpected.
    """

    def __init__(self, app: ASGIApp, routine: Collection[str] = ()) -> None:
        self._app, self._routine = app, frozenset(routine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, object] = {}
        scope.setdefault("state", {}).update(log=fields, request_id=request_id)
        status, started = 0, time.monotonic()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, named)
            finally:
                path, ms = scope["path"], round((time.monotonic() - started) * 1e3, 3)
                line = {"method": scope["method"], "path": path[:200], "status": status, "ms": ms, **fields}
                level = logging.DEBUG if self._is_routine(path, status, fields) else logging.INFO
                logger.log(level, "request", extra={key: value for key, value in line.items() if value is not None})

    def _is_routine(self, path: str, status: int, fields: Mapping[str, object]) -> bool:
        return path in self._routine and (status < 400 or fields.get("code") in PASSING)


class Door:
    """Refuses offers of a WebSocket, and requests on connections beyond the limit unless they are for operations."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["state"].get("crowded") and scope["path"] not in OPERATIONS:
                raise TooManyConnections()
            if Headers(scope=scope).get("upgrade", "").strip().lower() == "websocket":
                raise UnsupportedUpgrade()
        await self._app(scope, receive, send)


class Authentication:
    """Requires one of the keys, as a bearer token or in one of ``KEY_HEADERS``.

    Some paths may stay open, for probes, Prometheus and browsers.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Sequence[str]) -> None:
        self._app, self._open = app, frozenset(open_paths)
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open and not self._admits(Headers(scope=scope)):
            raise Unauthorized(
                "a valid API key is needed; send it as Authorization: Bearer KEY, or as X-API-Key or api-key: KEY"
            )
        await self._app(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        # A meaningless key may be sent beside the right one: OpenAI's SDKs always send theirs.
        return sum(map(self._known, _sent(headers))) > 0

    def _known(self, key: bytes) -> bool:
        # All keys are compared, each in constant time, so that the time reveals nothing about them.
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _sent(headers: Headers) -> list[bytes]:
    """Each key that a request sends."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = [bearer] if scheme.lower() == "bearer" else []
    return [key.strip(" \t").encode("latin-1") for key in (*keys, *(headers.get(name, "") for name in KEY_HEADERS))]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Admission:
    """Refuses a generating request when the queue is full, before its body is read, validated and tokenized."""

    def __init__(self, app: ASGIApp, generating: Collection[str]) -> None:
        """
        Args:
            generating: paths whose requests take a place in the queue.
        """
        self._app, self._generating = app, frozenset(generating)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._generating:
            scope["app"].state.service.require_room()
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads the body before the route does, up to a size and for a limited time, and passes it on in one piece."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        _require_plain(headers.get("content-encoding", ""))
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            raise BodyTimeout(f"the request body did not arrive within {self._timeout_s:g} s") from None

        if body["type"] == "http.disconnect":
            # The client left while sending its body, so there is nobody to answer.
            return

        unread = [body]

        async def replayed() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replayed, send)

    async def _read(self, receive: Receive) -> Message:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request body is larger than {self._max_bytes} bytes, the limit of this server")


def _require_plain(encoding: str) -> None:
    """Refuse compressed bodies: one could be a thousand times as large as the bytes that arrive.

    Raises:
        UnsupportedEncoding: the body is compressed.
    """
    codings = [coding for coding in (part.strip().lower() for part in encoding.split(",")) if coding]
    if any(coding != "identity" for coding in codings):
        raise UnsupportedEncoding(
            f"this server takes no body with Content-Encoding: {ascii(encoding[:40])[1:-1]}; send it uncompressed"
        )
