"""Forbid keys that a JSON schema does not list. Whoever lists properties usually means that there are no others."""

from collections.abc import Iterator, Mapping
from typing import Any

# Keys that contain schemas: an object of them by name, a list of them, or one schema.
BY_NAME = ("properties", "$defs", "definitions")
LISTED = ("anyOf", "prefixItems")
ALONE = ("items", "additionalProperties")
# With one of these keys, an object's schema itself says what else the object may have.
OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties")
# Keys that apply several schemas to one value. Closing one of them could forbid what another describes.
COMBINED = ("allOf", "oneOf", "dependentSchemas", "if", "not")
ALTERNATIVE = ("anyOf", "$ref")
DEMANDS = ("properties", "required", "minProperties")


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema, but objects that list their properties have no others.

    An object stays open if its schema says what else it may have, or requires a key that it does not list. Nothing is
    closed if any value in the schema has several schemas, since these may complete each other. Every value that fits
    the result fits the schema; if the schema has fitting values, so has the result.
    """
    if any(_combined(one) for one in _within(schema)):
        return dict(schema)
    try:
        made: dict[str, Any] = _closed(schema)
    except RecursionError:
        # The compiler has its own limit for depth and reports it.
        return dict(schema)
    return made


def _combined(schema: Mapping[str, Any]) -> bool:
    alternatives = sum(key in schema for key in ALTERNATIVE)
    demands = any(key in schema for key in DEMANDS)
    return any(key in schema for key in COMBINED) or alternatives + demands > 1


def _within(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema and all schemas inside it."""
    pending: list[Any] = [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, Mapping):
            yield one
            for key in BY_NAME:
                named = one.get(key)
                pending += named.values() if isinstance(named, Mapping) else ()
            for key in LISTED:
                listed = one.get(key)
                pending += listed if isinstance(listed, list) else ()
            pending += (one[key] for key in ALONE if key in one)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key in BY_NAME:
        if isinstance(named := made.get(key), Mapping):
            made[key] = {name: _closed(own) for name, own in named.items()}
    for key in LISTED:
        if isinstance(listed := made.get(key), list):
            made[key] = [_closed(own) for own in listed]
    made.update({key: _closed(made[key]) for key in ALONE if key in made})
    if _lists_all(made) and not any(key in made for key in OPEN):
        made["additionalProperties"] = False
    return made


def _lists_all(schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return False
    return all(isinstance(name, str) and name in properties for name in required)
