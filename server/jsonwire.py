"""JSON as it leaves the server: the one place that turns a value into bytes.

JSON lets some characters stand in a string that other rules take for the end of a line. Python's ``str.splitlines``,
and every client that splits server-sent events with it, breaks at them. They leave as ``\\uXXXX``: the same text.
"""

import json
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

# All that ``str.splitlines`` splits at and JSON does not escape anyhow. Outside of strings JSON is ASCII.
LINE_ENDS = {
    "\x85".encode(): rb"\u0085",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}


def encode(value: Any) -> bytes:
    """A value of dicts, lists, texts and finite numbers."""
    return one_line(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())


def encode_model(value: BaseModel) -> bytes:
    """A pydantic model."""
    return one_line(value.model_dump_json().encode())


def one_line(content: bytes) -> bytes:
    """JSON in which no reader finds the end of a line."""
    for raw, escaped in LINE_ENDS.items():
        content = content.replace(raw, escaped)
    return content


class Json(JSONResponse):
    """What routes and errors answer with."""

    def render(self, content: Any) -> bytes:
        return encode(content)
