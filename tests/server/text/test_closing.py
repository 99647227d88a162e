"""Objects are closed (additionalProperties false) where this loses no valid value."""

import copy
from typing import Any

import pytest
from pydantic import BaseModel

from server.text.closing import closed
from server.text.tool_grammar import arguments_schema


class Home(BaseModel):
    city: str


class Person(BaseModel):
    name: str
    home: Home
    others: list[Home] = []
    office: Home | None = None
    by_year: dict[str, Home] = {}


def test_all_objects_of_a_pydantic_model_are_closed() -> None:
    """instructor and other clients send such a schema, with nested models in $defs."""
    schema = Person.model_json_schema()
    before = copy.deepcopy(schema)
    made = closed(schema)

    assert made["additionalProperties"] is False
    assert made["$defs"]["Home"]["additionalProperties"] is False
    assert made["properties"]["by_year"] == before["properties"]["by_year"]
    assert schema == before


INNER: dict[str, Any] = {"type": "object", "properties": {"a": {}}}


@pytest.mark.parametrize(
    "outer",
    [
        {"items": INNER},
        {"prefixItems": [INNER]},
        {"anyOf": [INNER, {"type": "null"}]},
        {"additionalProperties": INNER},
        {"properties": {"properties": INNER, "allOf": {}}, "additionalProperties": True},
    ],
    ids=str,
)
def test_inner_objects_are_closed(outer: dict[str, Any]) -> None:
    """Objects inside other schemas are closed; a property may have the name of a keyword."""
    assert str(closed(outer)) == str(outer).replace("{'a': {}}", "{'a': {}}, 'additionalProperties': False")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": {}}, "additionalProperties": {"type": "string"}},
        {"properties": {"a": {}}, "patternProperties": {"^x": {}}},
        {"properties": {"a": {}}, "required": ["a", "b"]},
        {"properties": {"a": {}}, "required": [[]]},
        {"properties": {"a": {}}, "minProperties": 2},
        {"allOf": [{"$ref": "#/$defs/x"}, {"properties": {"b": {}}}], "$defs": {"x": INNER}},
        {"properties": {"b": {}}, "$ref": "#/$defs/x", "$defs": {"x": INNER}},
        {"properties": {"b": {}}, "anyOf": [INNER, {"required": ["c"]}]},
        {"required": ["c"], "anyOf": [INNER, {"properties": {"c": {}}}]},
        {"oneOf": [INNER, {"properties": {"b": {}}}]},
        {"properties": 1, "anyOf": 2, "items": [3]},
    ],
    ids=str,
)
def test_schemas_that_stay_open(schema: dict[str, Any]) -> None:
    """Schemas that allow or need other keys, and several schemas of one value, which may complete each other."""
    assert closed(schema) == schema


def test_a_deep_schema_is_left_to_the_compiler() -> None:
    schema: dict[str, Any] = INNER
    for _ in range(5000):
        schema = {"items": schema}
    assert closed(schema)["items"] is schema["items"]


def test_arguments_and_their_objects_are_closed() -> None:
    """The arguments themselves are closed even if their parts must stay open."""
    inner_open = {"allOf": [INNER]}

    assert arguments_schema({"properties": {"b": INNER}})["properties"]["b"]["additionalProperties"] is False
    made = arguments_schema({"properties": {"b": inner_open}})
    assert (made["properties"]["b"], made["additionalProperties"]) == (inner_open, False)
