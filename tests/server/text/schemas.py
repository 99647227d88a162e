"""Random JSON schemas of the kinds that clients send. A few dozen tokens fill any of them."""

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]
NAMES = (
    "id", "name", "title", "status", "email", "created_at", "price", "quantity", "tags", "address", "city", "country",
    "is_active", "score", "user-id", "first name", "größe", "notes", "currency", "unit", "level", "parent", "$value",
)  # fmt: skip
WORDS = ("open", "closed", "in progress", "high", "low", "EUR", "USD", "ja", "n/a", 'say "hi"', "über", "a\\b", "")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4")


def text(random: Random) -> Schema:
    return random.choice([
        {"type": "string", "maxLength": random.randint(0, 8)},
        {"type": "string", "minLength": 2, "maxLength": 6, "description": "a short one"},
        {"type": "string", "pattern": random.choice(["^[A-Z]{2}-[0-9]{3}$", "^#[0-9a-f]{6}$", r"^\d{1,3}(\.\d)?$"])},
        {"type": "string", "format": random.choice(FORMATS)},
        {"enum": random.sample(WORDS, 3)},
        {"const": random.choice(WORDS)},
    ])  # fmt: skip


def number(random: Random) -> Schema:
    low = random.randint(-50, 50)
    return random.choice([
        {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 200)},
        {"type": "number", "minimum": low, "maximum": low + 10},
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 100, "multipleOf": 5},
        {"enum": [0, 1, 2.5, -3]},
        {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        {"type": "boolean", "default": False},
    ])  # fmt: skip


def value(random: Random) -> Schema:
    return random.choice([text, number])(random)


def record(random: Random, depth: int = 1) -> Schema:
    """An object of named values. Some are optional, and some hold other values."""
    names = random.sample(NAMES, random.randint(1, 5))
    inner = [value, value, value, *([record_in, listing] if depth else [])]
    properties = {name: random.choice(inner)(random) for name in names}
    if random.random() < 0.2:
        others = {"additionalProperties": number(random), "maxProperties": len(names) + 1}
        return {"type": "object", "properties": properties, "required": names, **others}
    required = random.sample(names, random.randint(0, len(names)))
    return {
        "type": "object", "title": "A record", "properties": properties, "required": required,
        "additionalProperties": False,
    }  # fmt: skip


def record_in(random: Random) -> Schema:
    return record(random, 0)


def listing(random: Random) -> Schema:
    """An array of records or of values."""
    items = random.choice([value, record_in])(random)
    return random.choice([
        {"type": "array", "items": items, "minItems": random.randint(0, 2), "maxItems": 3},
        {"type": "array", "prefixItems": [value(random), value(random)], "items": False, "minItems": 2},
    ])  # fmt: skip


def union(random: Random) -> Schema:
    """One of several records that a constant tells apart, as pydantic writes it, or one of several types."""
    kinds = [
        {"type": "object", "properties": {"kind": {"const": kind}, "of": value(random)}, "required": ["kind"],
         "additionalProperties": False}
        for kind in ("cat", "dog", "fish")
    ]  # fmt: skip
    return random.choice([
        {"oneOf": kinds, "discriminator": {"propertyName": "kind"}},
        {"anyOf": [text(random), {"type": "null"}, listing(random)]},
        {"type": "object", "properties": {"pet": {"anyOf": kinds}}, "required": ["pet"], "additionalProperties": False},
    ])  # fmt: skip


def referring(random: Random) -> Schema:
    """Definitions that are used twice, and one that refers to itself."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "Money": {
                "type": "object", "properties": {"amount": number(random), "currency": {"enum": ["EUR", "USD"]}},
                "required": ["amount", "currency"], "additionalProperties": False,
            },
            "Node": {
                "type": "object", "additionalProperties": False, "required": ["label"],
                "properties": {"label": text(random), "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            },
        },
        "type": "object", "additionalProperties": False, "required": ["net", "gross"],
        "properties": {
            "net": {"$ref": "#/$defs/Money"}, "gross": {"$ref": "#/$defs/Money"}, "root": {"$ref": "#/$defs/Node"},
        },
    }  # fmt: skip


def settings(random: Random) -> Schema:
    """A map with arbitrary names, or an object whose parts come from two schemas."""
    return random.choice([
        {"type": "object", "additionalProperties": value(random), "maxProperties": 3},
        {"type": "object", "patternProperties": {"^x-[a-z]{1,3}$": value(random)}, "additionalProperties": False,
         "maxProperties": 3},
        {"allOf": [
            {"type": "object", "properties": {"port": {"type": "integer", "minimum": 1, "maximum": 65535}},
             "required": ["port"]},
            {"properties": {"host": {"type": "string", "format": "ipv4"}}, "required": ["host"]},
        ], "additionalProperties": True, "maxProperties": 2},
    ])  # fmt: skip


KINDS: dict[str, Callable[[Random], Schema]] = {
    "records": record, "listings": listing, "unions": union, "references": referring, "settings": settings,
    "values": value,
}  # fmt: skip
