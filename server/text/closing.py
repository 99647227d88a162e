"""Objects of a JSON schema without keys that it does not describe, as somebody who lists properties mostly means it."""

from collections.abc import Iterator, Mapping
from typing import Any

# Where schemas lie inside a schema: in an object by name, in a list, or alone.
BY_NAME = ("properties", "$defs", "definitions")
LISTED = ("anyOf", "prefixItems")
ALONE = ("items", "additionalProperties")
# With these an object's schema says itself what else it may have.
OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties")
# Several schemas for one value: what one of them describes another would shut out, or let in where it shall not hold.
COMBINED = ("allOf", "oneOf", "dependentSchemas", "if", "not")
ALTERNATIVE = ("anyOf", "$ref")
DEMANDS = ("properties", "required", "minProperties")


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema, where each object that lists its properties has no others.

    Only where it does not say itself what else there may be, nor asks for more than it lists. Nothing is closed if any
    value in it has several schemas, since those may complete each other. So whatever fits the result fits the schema,
    and where something did, something still does.
    """
    if any(_combined(one) for one in _within(schema)):
        return dict(schema)
    try:
        made: dict[str, Any] = _closed(schema)
    except RecursionError:
        # The compiler has a limit of its own for that, and says so.
        return dict(schema)
    return made


def _combined(schema: Mapping[str, Any]) -> bool:
    alternatives = sum(key in schema for key in ALTERNATIVE)
    demands = any(key in schema for key in DEMANDS)
    return any(key in schema for key in COMBINED) or alternatives + demands > 1


def _within(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """It, and all schemas inside it."""
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
