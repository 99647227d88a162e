"""An invalid body: the answer says what is wrong with it, and where."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.client import metric, post
from tests.server.scripted import ScriptedEngine, served

JSON = {"Content-Type": "application/json"}
VALID = b'{"prompt": "a", "max_tokens": 1}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(ScriptedEngine()) as address:
        yield address


def send(url: str, body: bytes, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    return httpx.post(
        f"{url}{path}", content=body, headers={**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}}
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"prompt": "a",\n "max_tokens": }', "Expecting value at line 2, column 16, where '}' stands"),
        (b'{"prompt": "a"', "at line 1, column 15, where the body ends"),
        (b"{'prompt': 'a'}", "in double quotes at line 1, column 2"),
        (b'{"prompt": "a"} {"prompt": "b"}', "Extra data at line 1, column 17"),
        (b'{"prompt": "a",}', "line 1, column 1"),
        (b'{"prompt": "a\nb"}', "Invalid control character at line 1, column 14, where '\\nb\"}' stands"),
        ('{"prompt": ü}'.encode(), "where '\\xfc}' stands"),
        (b'{"prompt": "a\xff"}', "is not valid UTF-8: 0xff at byte 13"),
        (b'{"prompt": "\xc3', "is not valid UTF-8: 0xc3 at byte 12"),
        (b'{"temperature": NaN}', "temperature: NaN at line 1, column 17 is not a JSON value"),
        (b'{"prompt": "NaN",\n"temperature": -Infinity}', "-Infinity at line 2, column 16 is not a JSON value"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number of 5000 digits at line 1, column 10"),
        (b'{"prompt": "a", "seed": 1, "seed": 2}', "the key 'seed' twice"),
        (b'{"prompt": "a", "griffin": {"mode": "fast", "mode": "fast"}}', "the key 'mode' twice"),
        (b'{"griffin": {"acceptance": [NaN]}}', "JSON: NaN at line 1, column 29 is not a JSON value"),
        (b'["prompt"]', "must be a JSON object, but is a list"),
        (b'"prompt"', "must be a JSON object, but is a string"),
        (b"3.5", "must be a JSON object, but is a number"),
        (b"true", "must be a JSON object, but is a boolean"),
        (b"null", "must be a JSON object, but is null"),
        (b"", "the body is empty"),
        (b"[" * 500_000, "nested more than 100 levels"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 100 levels"),
        (b'{"prompt": "a", "a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 levels"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_the_error_says_what_is_wrong_and_where(url: str, body: bytes, said: str, path: str) -> None:
    """Every endpoint says it in a short sentence of ASCII."""
    answer = send(url, body, path)
    error = answer.json()["error"]

    assert answer.status_code == 400
    assert (error["code"], error["type"]) == ("invalid_json", "invalid_request_error")
    assert error["param"] == ("temperature" if b"temperature" in body else None)
    assert said in error["message"]
    assert error["message"].isascii()
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + VALID,
        VALID.decode().encode("utf-16"),
        VALID + b"\r\n",
        b'{"prompt": "a", "max_tokens": 1, "a": ' + b"[" * 99 + b"]" * 99 + b"}",
        b'{"prompt": "NaN Infinity {{{[[[ ' + b"[" * 900 + b'", "max_tokens": 1}',
        b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}',
    ],
)
def test_unusual_but_valid_bodies(url: str, body: bytes) -> None:
    """A byte order mark, UTF-16, a line end, deep nesting, brackets in a text, a surrogate pair."""
    assert send(url, body).status_code == 200


@pytest.mark.parametrize("sent", ["application/x-www-form-urlencoded", "text/plain", "text/json", "nonsense", ""])
def test_another_content_type(url: str, sent: str) -> None:
    """The error names the type that was sent, or that there is none, and the right one."""
    answer = httpx.post(f"{url}/v1/completions", content=VALID, headers={"Content-Type": sent} if sent else {})
    error = answer.json()["error"]

    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in error["message"]
    assert (sent or "no Content-Type") in error["message"]


@pytest.mark.parametrize("sent", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_content_types_of_json(url: str, sent: str) -> None:
    """Clients spell the type in several ways."""
    assert send(url, VALID, **{"Content-Type": sent}).status_code == 200


@pytest.mark.parametrize("sent", ["gzip", "GZIP", "br", "identity, gzip", "zstd", "nonsense\u00e4"])
def test_a_compressed_body_is_refused_before_it_is_read(sent: str) -> None:
    """The header is enough: the body does not have to arrive."""
    with served(ScriptedEngine(), body_timeout=60) as url:
        head = {**JSON, "Content-Encoding": sent.encode("latin-1"), "Content-Length": "1000"}
        answer = httpx.post(f"{url}/v1/completions", content=iter([b"\x1f"] * 1000), headers=head)
        error = answer.json()["error"]
        assert metric(url, "griffin_requests_rejected_total", reason="unsupported_content_encoding") == 1

    assert (answer.status_code, error["code"]) == (415, "unsupported_content_encoding")
    assert "Content-Encoding" in error["message"]
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("sent", ["identity", "", "Identity, identity"])
def test_a_body_with_content_encoding_identity(url: str, sent: str) -> None:
    """Content-Encoding identity is accepted."""
    assert send(url, VALID, Content_Encoding=sent).status_code == 200


def test_a_request_after_all_that(url: str) -> None:
    """The server still answers."""
    answer: Any = post(url, max_tokens=2)

    assert json.loads(answer.text)["choices"][0]["text"] == "ab"
