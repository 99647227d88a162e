"""Streams in pieces, and faulty answers."""

import json

import pytest

from loadtest.answer import Answer


def event(value: object) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def test_a_stream_in_pieces_of_any_size() -> None:
    """A piece may end inside a line or a character; U+2028 does not end a line; comments are skipped."""
    stream = (
        event({"choices": [{"text": "a\u2028b", "finish_reason": None}]})
        + b": keep-alive\n\n"
        + event({"choices": [{"text": "c", "finish_reason": "length"}]})
        + event({"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 3}, "griffin": {"sparsity": 0.5}})
        + b"data: [DONE]\n\n"
    )
    answer = Answer()
    found = sum(answer.feed(stream[at : at + 1], float(at)) for at in range(len(stream)))
    answer.end()

    assert answer.error is None
    assert found == len(answer.text_s) == 2
    assert (answer.tokens, answer.prompt_tokens, answer.cached_tokens) == (2, 3, None)
    assert answer.block("griffin") == {"sparsity": 0.5}
    assert answer.finish_reason == "length"


def test_a_chat_begins_with_its_first_text() -> None:
    """The chunk with the role is not the first text."""
    answer = Answer()
    answer.feed(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), 1.0)
    answer.feed(event({"choices": [{"delta": {"content": "hi"}}]}), 2.0)
    answer.feed(event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), 3.0)

    assert answer.text_s == [2.0]
    assert answer.last_s == 3.0


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (event({"choices": [{"text": "a"}]}), "stream ended early"),
        (b"data: {broken\n\n", "bad answer"),
        (b"data: [1]\n\n", "bad answer"),
        (
            event({"error": {"message": "no", "code": "engine_failed"}}) + b"data: [DONE]\n\n",
            "in stream: engine_failed",
        ),
        (event({"error": "no"}), "in stream"),
    ],
)
def test_faulty_streams(stream: bytes, error: str) -> None:
    """Each fault has a name under which it is counted."""
    answer = Answer()
    answer.feed(stream, 0.0)
    answer.end()

    assert answer.error == error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"error": {"message": "m", "type": "t", "code": "c"}}', "HTTP 400 c"),
        ('{"error": {"message": "m", "type": "t", "code": "400"}}', "HTTP 400 t"),
        ('{"object": "error", "message": "m", "type": "t", "code": 400}', "HTTP 400 t"),
        ('{"error": {"message": "m", "type": null, "code": null}}', "HTTP 400"),
    ],
)
def test_refusals_are_counted_by_code(body: str, error: str) -> None:
    """OpenAI's error object and older forms of it are known."""
    answer = Answer()
    answer.refused(400, body)

    assert (answer.error, answer.message) == (error, "m")


@pytest.mark.parametrize("body", ["<html>", "[]", '{"choices": []}'])
def test_a_faulty_body(body: str) -> None:
    """It counts as a bad answer."""
    answer = Answer()
    answer.whole(body)

    assert answer.error == "bad answer"
