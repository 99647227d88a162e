"""A router that knows which of its routes generate; other parts of the server ask it."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import GENERATED, OPENAI, Shape
from server.http.jsonbody import JsonRoute
from server.protocol.stream import Stream

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class GeneratingRouter(APIRouter):
    """A router for routes that generate. ``streams``: the events of each path. ``errors``: the form of errors."""

    def __init__(self, errors: Shape = OPENAI) -> None:
        super().__init__(route_class=JsonRoute)
        self.streams: dict[str, Stream] = {}
        self.errors = errors

    def generates(self, path: str, answer: type[BaseModel], stream: Stream) -> Callable[[Endpoint], Endpoint]:
        """Declare an endpoint: POST ``path`` takes a place in the queue, and may be answered by a stream.

        Args:
            answer: the shape of a response that is not streamed.
        """
        self.streams[path] = stream
        return self.post(
            path, response_model=answer, responses={200: stream.documented(), **self.errors.documented(*GENERATED)}
        )
