"""OpenAI's strict mode for JSON schemas: all properties are required, and no others are allowed."""

from collections.abc import Iterator
from typing import Any

# Keys that contain schemas: an object of them by name, a list of them, or one schema.
BY_NAME = ("properties", "$defs", "definitions")
LISTED = ("anyOf", "allOf", "oneOf", "prefixItems")
ALONE = ("items",)


def fault(schema: dict[str, Any]) -> str | None:
    """What strict mode refuses in a schema, and where, in OpenAI's words; None if nothing."""
    if schema.get("type") != "object" and "$ref" not in schema:
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'"
    pending: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), schema)]
    while pending:
        place, one = pending.pop()
        if (found := _fault_of(one)) is not None:
            shown = ", ".join(repr(part[:64]) for part in place)
            return f"in context=({shown}), {found}"
        pending += ((place + inner, own) for inner, own in _inside(one) if isinstance(own, dict))
    return None


def _fault_of(schema: dict[str, Any]) -> str | None:
    types = schema.get("type")
    if "object" not in (types if isinstance(types, list) else [types]) and "properties" not in schema:
        return None
    if schema.get("additionalProperties") is not False:
        return "'additionalProperties' is required to be supplied and to be false"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return "'properties' must be an object, and 'required' a list"
    missing = next((name for name in properties if name not in required), None)
    if missing is not None:
        return (
            "'required' is required to be supplied and to be an array including every key in properties. "
            f"Missing '{missing[:64]}'"
        )
    return None


def _inside(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key in BY_NAME:
        named = schema.get(key)
        yield from (((key, name), own) for name, own in named.items()) if isinstance(named, dict) else ()
    for key in LISTED:
        listed = schema.get(key)
        yield from (((key, str(number)), own) for number, own in enumerate(listed)) if isinstance(listed, list) else ()
    yield from (((key,), schema[key]) for key in ALONE if key in schema)
