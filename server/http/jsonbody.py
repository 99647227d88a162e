"""A request's body becomes a value, or an error that says what is wrong with it and where."""

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.errors import InvalidJson, UnsupportedMediaType

# Much deeper than any field needs, and much less than Python's recursion limit.
DEEPEST = 100
# Characters of the body that an error quotes.
SHOWN = 20
NAMED = 40
# A string, which is skipped; or a word or number that is not JSON but that Python's parser accepts or fails at.
STRAY = re.compile(r'"(?:[^"\\]|\\.)*"|(?P<word>-?Infinity|NaN)|(?P<digits>-?[0-9]{4301,})', re.DOTALL)
NAMES = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}


class JsonRoute(APIRoute):
    """A route whose body must be a JSON object."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            wanted = JsonRequest(request.scope, request.receive)
            if not await wanted.body():
                raise InvalidJson("the body is empty; send a JSON object")
            require_json(wanted.headers.get("content-type"))
            return await handle(wanted)

        return checked


class JsonRequest(Request):
    """A request whose body is read by ``parse``."""

    async def json(self) -> Any:
        if not hasattr(self, "_value"):
            self._value = parse(await self.body())
        return self._value


def require_json(content_type: str | None) -> None:
    """
    Raises:
        UnsupportedMediaType: the type is not JSON, or missing. Web pages may send some types without a preflight.
    """
    message = Message()
    message["content-type"] = content_type or "none"
    subtype = message.get_content_subtype()
    if message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json")):
        return
    said = f"the body is sent as {_ascii(content_type, NAMED)}" if content_type else "the body has no Content-Type"
    raise UnsupportedMediaType(f"{said}; send JSON with the header Content-Type: application/json")


def parse(body: bytes) -> dict[str, Any]:
    """The object in a body. A byte order mark is skipped, also in UTF-16 and UTF-32.

    Raises:
        InvalidJson: the body is not a JSON object, or JSON readers would disagree about it.
    """
    text = _decoded(body)
    try:
        value = json.loads(text, parse_constant=_refused, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"{_place(text, error.pos)}, where {_found(text, error.pos)}"
        raise InvalidJson(f"the body is not valid JSON: {error.msg.removesuffix(' at')} at {where}") from None
    except RecursionError:
        _too_deep()
    except _Stray:
        _refuse_stray(text)
    except ValueError:
        # Python refuses to make a number of so many digits.
        _refuse_stray(text)
    if not isinstance(value, dict):
        name = "null" if value is None else f"a {NAMES[type(value)]}"
        raise InvalidJson(f"the body must be a JSON object, but is {name}")
    _require_flat(value, text)
    return value


class _Stray(Exception):
    """A word that Python reads as a number although JSON has no such value."""


def _refused(word: str) -> NoReturn:
    raise _Stray(word)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise InvalidJson(f"the body has the key {_ascii(twice, NAMED)} twice in one object; send it once")
    return found


def _decoded(body: bytes) -> str:
    encoding = json.detect_encoding(body)
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        byte = f"0x{body[error.start]:02x}" if error.start < len(body) else "its end"
        raise InvalidJson(f"the body is not valid {name}: {byte} at byte {error.start} (counted from 0)") from None


def _refuse_stray(text: str) -> NoReturn:
    for match in STRAY.finditer(text):
        if word := match["word"]:
            field = _stray_field(text)
            name = f"{field}: " if field else ""
            where = _place(text, match.start())
            raise InvalidJson(f"the body is not valid JSON: {name}{word} at {where} is not a JSON value", field)
        if digits := match["digits"]:
            where = _place(text, match.start())
            raise InvalidJson(f"the body has a number of {len(digits)} digits at {where}; no field takes so many")
    raise InvalidJson("the body has a number that is too long")


def _stray_field(text: str) -> str | None:
    """The field, or field of a field, whose value is not JSON. None: the value lies deeper."""
    try:
        value = json.loads(text, parse_constant=_Stray)
    except ValueError:
        return None
    for name, inner in value.items() if isinstance(value, dict) else ():
        fields = {
            name: inner,
            **({f"{name}.{key}": found for key, found in inner.items()} if isinstance(inner, dict) else {}),
        }
        for field, found in fields.items():
            if isinstance(found, _Stray):
                return _ascii(field, NAMED)[1:-1]
    return None


def _require_flat(value: dict[str, Any], text: str) -> None:
    """Refuse a body that is nested too deep. Counting brackets is enough for most bodies."""
    if text.count("{") + text.count("[") <= DEEPEST:
        return
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return
    _too_deep()


def _too_deep() -> NoReturn:
    raise InvalidJson(f"the body is nested more than {DEEPEST} levels deep")


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _found(text: str, position: int) -> str:
    rest = text[position : position + SHOWN]
    return f"{_ascii(rest, 3 * SHOWN)} stands" if rest else "the body ends"


def _ascii(text: str, most: int) -> str:
    """The text cut to a length, with everything but printable ASCII escaped."""
    shown = ascii(text)
    return shown if len(shown) <= most else f"{shown[:most]}..."
