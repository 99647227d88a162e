"""One client's connection: how long it may be silent, when its client has left, and replies to invalid HTTP.

This is uvicorn's protocol with three changes. A client that has closed its sending half still gets its answer. A silent
connection is closed. Refusals are in OpenAI's form.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.errors import ApiError, HeaderTimeout, InvalidHttp
from server.jsonwire import encode

# A comment line, which clients skip. It is sent to learn whether the client is still there.
NUDGE = b":\n\n"
# Seconds between attempts to reach a client that has closed its sending half. The first attempt waits, because most
# answers are sent before it. There are four, because some clients take at most five interim responses. If the client
# has left, its system says so after the first attempt, and the second attempt learns it.
TRIES_S = (0.5, 0.1, 3.0, 20.0)


class Connection(H11Protocol):
    """One connection, from its acceptance to its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        header_timeout: float,
        crowded: Callable[[], bool] = lambda: False,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            header_timeout: seconds that the headers of a request may take to arrive.
            crowded: whether this connection is beyond the limit; the app reads it as state ``crowded``.
            on_lost: called once when the connection has ended.
        """
        super().__init__(config, server_state, {**app_state, "crowded": False})
        self._header_timeout, self._crowded, self._on_lost = header_timeout, crowded, on_lost
        self._patience: asyncio.TimerHandle | None = None
        self._trial: asyncio.TimerHandle | None = None
        # Whether the client has closed its sending half, and whether the answer is a stream of events.
        self._half_closed = self._streams = False
        self.app = partial(self._noting, self.app)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_for_silence()

    def data_received(self, data: bytes) -> None:
        self.app_state["crowded"] = self._crowded()
        super().data_received(data)
        self._watch_for_silence()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for writing."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            # There is no complete request, so there is nothing to answer.
            return False
        if self.scope["http_version"] != "1.1" and not self._streams:
            # HTTP/1.0 has no interim responses, so a client that left would be noticed only after its answer.
            # Proxies that use 1.0 leave this way.
            return False
        self._half_closed = True
        self._trial = self.loop.call_later(TRIES_S[0], self._try, 1)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._trial):
            if timer is not None:
                timer.cancel()
        self._patience = self._trial = None
        super().connection_lost(exc)
        self._on_lost()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._streams = False
        if self._half_closed and self.cycle.response_complete:
            # The client cannot send another request.
            self.transport.close()
        self._watch_for_silence()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not an HTTP request."""
        self._refuse(InvalidHttp("this is not an HTTP request that the server can read, or its head is too long"))

    def _should_upgrade(self) -> bool:
        """Never. An offer of HTTP/2 is answered in HTTP/1.1; the app answers an offer of a WebSocket."""
        return False

    def _watch_for_silence(self) -> None:
        """Start a timer when it is the client's turn to send, and stop it when the client has sent its request."""
        if not self._is_clients_turn():
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._patience is None:
            self._patience = self.loop.call_later(self._header_timeout, self._give_up)

    def _is_clients_turn(self) -> bool:
        if self.transport.is_closing():
            return False
        if self.cycle is None:
            return True
        if not self.cycle.response_complete:
            return False
        # uvicorn itself times out an idle connection, until part of the next request arrives. It does not while the
        # rest of a refused body arrives.
        return self.timeout_keep_alive_task is None or self.conn.their_state is h11.SEND_BODY

    def _give_up(self) -> None:
        self._patience = None
        if self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            self._refuse(HeaderTimeout(f"the request's headers did not arrive within {self._header_timeout:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Send an error and close the connection; for cases without a request that the app could answer."""
        if self.transport.is_closing():
            return
        body, status = encode(error.body()), HTTPStatus(error.status)
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        self.transport.write("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body)
        self.transport.close()

    def _try(self, number: int) -> None:
        """Send bytes that a client ignores, for the ``number``-th time, as long as the answer has not ended."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._streams:
            self.transport.write(self.conn.send(h11.Data(data=NUDGE)) or b"")
        if number < len(TRIES_S):
            self._trial = self.loop.call_later(TRIES_S[number], self._try, number + 1)

    async def _noting(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._streams = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message["headers"]
                )
            await send(message)

        await app(scope, receive, noted)
