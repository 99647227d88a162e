"""The events of an endpoint's streams, for the OpenAPI document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Stream:
    """What a client gets instead of one object if it requests a stream.

    events: the types of the events' data.
    framing: a sentence that says which events there are and how the stream ends.
    """

    events: Sequence[type[BaseModel]]
    framing: str

    def documented(self) -> dict[str, Any]:
        """The stream's entry beside the whole object. As in OpenAI's document, its schema is one event's data."""
        schemas = [{"$ref": REFERENCE.format(model=event.__name__)} for event in self.events]
        return {
            "description": f"the answer; with stream=true, server-sent events: {self.framing}",
            "content": {"text/event-stream": {"schema": {"anyOf": schemas}}},
        }


def schemas(streams: Sequence[Stream]) -> dict[str, Any]:
    """The components that ``documented`` refers to, by name."""
    events = {event: None for stream in streams for event in stream.events}
    _, document = models_json_schema([(event, "serialization") for event in events], ref_template=REFERENCE)
    found: dict[str, Any] = document["$defs"]
    return found
