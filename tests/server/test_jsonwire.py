"""A text with line ends: every answer stays one line and keeps the text."""

import json
import sys

import httpx
import pytest

from server.jsonwire import encode
from tests.server.client import post
from tests.server.scripted import ScriptedEngine, served

# All characters that Python takes for the end of a line.
ENDS = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if len(f"a{c}b".splitlines()) > 1)
TEXT = f"a{ENDS}b"


def test_all_ends_of_lines_are_escaped() -> None:
    """They are escaped in texts and in keys; other characters stay as they are."""
    found = encode({TEXT: [TEXT, "\u00fc\U0001f600\x7f\u2027\u202a"]}).decode()

    assert len(ENDS) >= 10
    assert found.splitlines() == [found]
    assert json.loads(found) == {TEXT: [TEXT, "\u00fc\U0001f600\x7f\u2027\u202a"]}
    assert "\u00fc\U0001f600" in found


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_events_survive_clients_that_split_as_python_does(path: str) -> None:
    """httpx's iter_lines splits in this way: each event must stay one line with the same text."""
    body = {"prompt": TEXT, "echo": True, "logprobs": 2} if path == "/v1/completions" else {"messages": [
        {"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 2}  # fmt: skip
    with served(ScriptedEngine(text=TEXT)) as url:
        answer = post(url, path, stream=True, max_tokens=len(TEXT), **body)
        whole = post(url, path, max_tokens=len(TEXT), **body)
    lines = [line for line in answer.text.splitlines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    [choice] = whole.json()["choices"]

    assert all(line.startswith("data: ") for line in lines)
    assert text == (TEXT * 2 if "prompt" in body else TEXT)
    assert (choice.get("text") or choice["message"]["content"]) == text
    assert whole.text.splitlines() == [whole.text]


def test_every_other_answer_is_one_line_too() -> None:
    """Other answers also repeat a client's text: errors, tokens, names."""
    with served(ScriptedEngine(), served_model_name=TEXT) as url:
        answers = [
            post(url, "/tokenize", prompt=TEXT, return_token_strs=True),
            post(url, "/tokenize", prompt=TEXT * 3000, return_token_strs=True),
            post(url, "/detokenize", tokens=[ord(character) for character in TEXT]),
            post(url, model=TEXT),
            post(url, sparsity=TEXT),
            post(url, **{TEXT: TEXT, "sparsity": 7}),
            post(url, griffin={TEXT: 1}),
            post(url, prompt=[TEXT]),
            httpx.get(f"{url}/v1/models"),
            httpx.get(f"{url}/v1/models/a%E2%80%A8b"),
            httpx.get(f"{url}/nowhere%E2%80%A8%C2%85"),
            httpx.get(f"{url}/v1/griffin/experts/%E2%80%A8%C2%85"),
            httpx.get(f"{url}/openapi.json"),
            httpx.get(f"{url}/ready"),
        ]

    assert answers[0].json()["token_strs"] == list(TEXT)
    assert answers[2].json()["prompt"] == TEXT
    for answer in answers:
        assert answer.text.splitlines() == [answer.text], answer.url
        answer.json()
