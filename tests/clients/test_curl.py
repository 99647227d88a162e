"""curl, the client that almost every machine has."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.common import MODEL, PROMPT
from tests.programs import require


@pytest.fixture(scope="module")
def curl() -> str:
    return require("curl")


def post(curl: str, url: str, body: str, *options: str) -> str:
    """The output of curl."""
    command = [curl, "-sS", *options, url, "-H", "Content-Type: application/json", "-d", body]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def ask(**more: Any) -> str:
    return json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "sparsity": 0.5, **more})


def test_one_object(curl: str, url: str) -> None:
    """Without stream the answer is one JSON object."""
    answer = json.loads(post(curl, f"{url}/v1/completions", ask()))

    assert answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["griffin"]["sparsity"] == 0.5


def test_a_stream_is_events_up_to_done(curl: str, url: str) -> None:
    """curl -N prints server-sent events: their texts join to the whole answer, and the last one is [DONE]."""
    whole = json.loads(post(curl, f"{url}/v1/completions", ask()))
    printed = post(curl, f"{url}/v1/completions", ask(stream=True), "-N")
    *chunks, last = printed.removesuffix("\n\n").split("\n\n")

    assert last == "data: [DONE]"
    parsed = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    assert "".join(chunk["choices"][0]["text"] for chunk in parsed) == whole["choices"][0]["text"]
    assert len(parsed) == 8


def test_broken_json_is_an_error_object(curl: str, url: str) -> None:
    """The status is 400 and the body says what is wrong, in OpenAI's form."""
    body, status = post(curl, f"{url}/v1/completions", '{"prompt": "a",', "-w", "\n%{http_code}").rsplit("\n", 1)
    error = json.loads(body)["error"]

    assert status == "400"
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_json", None)
    assert "JSON" in error["message"]


def test_curls_own_content_type_is_explained(curl: str, url: str) -> None:
    """-d without a header sends the type of a form; the error names the right header."""
    command = [curl, "-sS", f"{url}/v1/completions", "-d", ask()]
    error = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["error"]

    assert error["type"] == "invalid_request_error"
    assert "Content-Type: application/json" in error["message"]


def test_fail_with_body(curl: str, url: str) -> None:
    """A script that uses --fail-with-body sees both the failure and the reason."""
    command = [curl, "-sS", "--fail-with-body", f"{url}/v1/completions", "--json", ask(sparsity=2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 22
    assert json.loads(done.stdout)["error"]["param"] == "sparsity"


def test_a_long_body_with_expect_continue(curl: str, url: str) -> None:
    """curl waits for permission before it sends a long body, and the server gives it."""
    # The body comes on standard input, because no command line is that long.
    command = [curl, "-sS", f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d", "@-"]
    command += ["-H", "Expect: 100-continue"]
    body = ask(prompt="word " * 50_000, truncate_prompt_tokens=8, max_tokens=1)
    done = subprocess.run(command, capture_output=True, text=True, input=body, check=True, timeout=120)
    answer = json.loads(done.stdout)

    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (8, 1)
