"""The texts of a JSON schema that an answer may spell out: names of properties, constants and patterns."""

from collections.abc import Iterator
from typing import Any

# Their keys are names of properties, and their values schemas.
BY_NAME = ("properties", "patternProperties", "dependentSchemas")
# Their keys are names of schemas, and their values schemas.
NAMED = ("$defs", "definitions")
VALUES = ("const", "enum", "pattern", "required")
# No answer spells these.
SILENT = ("title", "description", "$comment", "examples", "default", "$id", "$schema", "$ref", "$anchor", "format")


def spelled_out(schema: Any) -> Iterator[Any]:
    """JSON values whose texts an answer by this schema may have."""
    pending = [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            for key, value in one.items():
                if key in VALUES:
                    yield value
                elif key in (*BY_NAME, *NAMED) and isinstance(value, dict):
                    yield list(value) if key in BY_NAME else []
                    pending += value.values()
                elif key not in SILENT:
                    pending.append(value)
