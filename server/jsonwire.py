"""JSON as the server sends it: the only place that turns a value into bytes.

JSON allows characters inside strings that other programs treat as the end of a line. Python's ``str.splitlines``, and
each client that splits server-sent events with it, breaks there. These characters are sent as ``\\uXXXX``.
"""

import json
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

# All characters that ``str.splitlines`` splits at and JSON does not escape. Outside strings, JSON is ASCII.
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
    """The same JSON, with no character that a reader could take for the end of a line."""
    for raw, escaped in LINE_ENDS.items():
        content = content.replace(raw, escaped)
    return content


class Json(JSONResponse):
    """The response class of routes and errors."""

    def render(self, content: Any) -> bytes:
        return encode(content)
