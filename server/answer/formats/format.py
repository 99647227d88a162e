"""What is asked of every API's way to write answers: the events of a stream, and the body of a whole response."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.answer.collected import Answer
from server.answer.texts import Piece
from server.errors import ApiError
from server.jsonwire import encode


class Format(Protocol):
    """One answer to one request, in bytes. Each method gives server-sent events, one or more; only ``whole`` does not.

    A stream is ``open``, then ``piece`` for each piece, then ``close`` if the answer is complete, or ``error``. What
    follows a piece may depend on those before it, so a format may keep state. A piece may be written in a thread.
    """

    def open(self) -> bytes:
        """What comes before the first piece, maybe nothing."""

    def piece(self, piece: Piece) -> bytes:
        """A part of one of the answers."""

    def close(self) -> bytes:
        """What comes after the last piece."""

    def error(self, error: ApiError) -> bytes:
        """What comes instead of the rest of the stream, its end included."""

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """The body of a response that is not streamed, in JSON."""


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event. ``name``: for APIs that tell their events apart by it."""
    named = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (named, encode(data))
