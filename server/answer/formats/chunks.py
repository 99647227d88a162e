"""What OpenAI's two older APIs share: chunks and objects with ``choices``, and ``[DONE]``."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from server.answer.collected import Answer
from server.answer.formats.format import event
from server.answer.generation import Generation
from server.answer.texts import Piece
from server.errors import ApiError
from server.jsonwire import encode
from server.protocol.request import StreamOptions

DONE = b"data: [DONE]\n\n"


class ChunkFormat(ABC):
    """A ``Format``. A subclass names the API's objects and writes each piece and each answer.

    prefix: start of ids. object_name, chunk_name: the field ``object`` of a whole response and of a chunk.
    """

    prefix: ClassVar[str]
    object_name: ClassVar[str]
    chunk_name: ClassVar[str]

    def __init__(self, generation: Generation, options: StreamOptions | None) -> None:
        self._generation, self._delivery = generation, generation.delivery
        self._include_usage = bool(options and options.include_usage)
        self._usage_in_each = self._include_usage and bool(options and options.continuous_usage_stats)
        self._frame = {
            "id": self.prefix + uuid.uuid4().hex,
            "object": self.chunk_name,
            "created": int(time.time()),
            "model": self._delivery.model_name,
        }
        # In every chunk but the last.
        self._no_usage: dict[str, Any] = {"usage": None} if self._include_usage else {}

    @abstractmethod
    def chunks(self, piece: Piece) -> Sequence[dict[str, Any]]:
        """The fields of one or more chunks for a piece."""

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """One of the ``choices`` of a whole response."""

    def extras(self) -> dict[str, Any]:
        """Further fields of a whole response."""
        return {}

    def open(self) -> bytes:
        return b""

    def piece(self, piece: Piece) -> bytes:
        return b"".join(event({**self._frame, **chunk, **self._usage(piece)}) for chunk in self.chunks(piece))

    def close(self) -> bytes:
        last = event({**self._frame, "choices": [], **self._reports()}) if self._include_usage else b""
        return last + DONE

    def error(self, error: ApiError) -> bytes:
        # The status line was sent long ago; OpenAI's SDKs raise this object's message.
        return event(error.body()) + DONE

    def whole(self, answers: Sequence[Answer]) -> bytes:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        named = {**self._frame, "object": self.object_name}
        return encode({**named, "choices": choices, **self.extras(), **self._reports()})

    def _usage(self, piece: Piece) -> dict[str, Any]:
        if not self._usage_in_each:
            return self._no_usage
        return {"usage": self._generation.report.usage_of(piece.prompt, piece.sample).model_dump()}

    def _reports(self) -> dict[str, Any]:
        report = self._generation.report
        return {
            "usage": report.usage().model_dump(),
            "griffin": report.griffin().model_dump(),
            "metrics": report.timing().model_dump(),
        }
