"""A call's arguments always become an object in /v1/messages."""

import json

import pytest

from server.answer.formats.anthropic import _object
from server.jsonwire import encode

DEEP = 100_000


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"a": [1, 2.5, "x\\u00e9", null]}', {"a": [1, 2.5, "x\u00e9", None]}),
        ('{"a": "line\nend"}', {"a": "line\nend"}),
        ('{"a": 1e999, "b": -1e999}', {"a": 1.7976931348623157e308, "b": -1.7976931348623157e308}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ('{"a": "\\ud800", "\\udc00": 1}', {"a": "\ufffd", "\ufffd": 1}),
        ('{}{"a": 1}', {}),
        ('{"a": ', {}),
        ("", {}),
        ("[1]", {}),
        ("7", {}),
        ('{"a": NaN}', {}),
        ('{"a": ' + "9" * 5000 + "}", {}),
        ('{"a": ' + DEEP * "[" + DEEP * "]" + "}", {}),
    ],
)
def test_arguments_are_always_an_object(arguments: str, wanted: object) -> None:
    """JSON can encode the object, which is empty if the arguments are not an object."""
    found = _object(arguments)

    assert found == wanted
    assert json.loads(encode(found)) == wanted
