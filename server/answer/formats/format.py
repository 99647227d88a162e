"""The interface of every API's format: the events of a stream, and the body of a whole response."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.answer.collected import Answer
from server.answer.texts import Piece
from server.errors import ApiError
from server.jsonwire import encode


class Format(Protocol):
    """Writes one answer to one request, as bytes. All methods but ``whole`` return one or more server-sent events.

    A stream is ``open``, then ``piece`` for each piece, then ``close`` if the answer is complete, or ``error``. A
    format may keep state from piece to piece. ``piece`` may run in a thread.
    """

    def open(self) -> bytes:
        """What precedes the first piece; may be empty."""

    def piece(self, piece: Piece) -> bytes:
        """A part of one of the answers."""

    def close(self) -> bytes:
        """What follows the last piece."""

    def error(self, error: ApiError) -> bytes:
        """What replaces the rest of the stream, including its end."""

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """The JSON body of a response that is not streamed."""


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event. ``name``: the event's name, for APIs that name events."""
    named = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (named, encode(data))
