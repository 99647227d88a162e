"""OpenAI's SDK for JavaScript from npm, in node."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.common import MODEL, PROMPT
from tests.clients.node import install, run
from tests.clients.versions import NPM_OPENAI

SCRIPT = Path(__file__).with_suffix(".mjs")


@pytest.fixture(scope="module")
def answers(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The script's output."""
    folder = tmp_path_factory.mktemp("npm")
    install(folder, {"openai": NPM_OPENAI})
    return run(SCRIPT, folder, f"{url}/v1", MODEL, PROMPT)


def joined(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def test_models(answers: dict[str, Any]) -> None:
    """The SDK iterates the list as it does with OpenAI's."""
    assert answers["models"][0] == MODEL
    assert f"{MODEL}@sparsity=0.5" in answers["models"]


def test_completion(answers: dict[str, Any]) -> None:
    """The answer is one object with its usage."""
    answer = answers["completion"]

    assert answer["choices"][0]["text"]
    assert answer["choices"][0]["finish_reason"] == "length"
    details = {"prompt_tokens_details": {"cached_tokens": 0}}
    assert answer["usage"] == {"prompt_tokens": 27, "completion_tokens": 8, "total_tokens": 35, **details}


def test_sparsity_is_one_more_field(answers: dict[str, Any]) -> None:
    """The SDK sends the field unchanged, and the answer has griffin and metrics."""
    assert answers["completion"]["griffin"]["sparsity"] == 0
    assert answers["half"]["griffin"]["sparsity"] == 0.5
    assert answers["half"]["metrics"]["tokens_per_second"] > 0


def test_streamed_completion(answers: dict[str, Any]) -> None:
    """Each token has a chunk; the last chunk has usage and griffin."""
    *chunks, last = answers["streamedCompletion"]

    assert joined(chunks) == answers["half"]["choices"][0]["text"]
    assert len(chunks) == 8
    assert (last["choices"], last["usage"]) == ([], answers["half"]["usage"])
    assert last["griffin"]["expert_set"] == answers["half"]["griffin"]["expert_set"]


def test_streamed_chat(answers: dict[str, Any]) -> None:
    """The role comes first, then the message; the SDK's own helper gives the same message."""
    first, *chunks, last = answers["streamedChat"]
    message = answers["chat"]["choices"][0]["message"]

    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert joined(chunks) == message["content"] != ""
    assert chunks[-1]["choices"][0]["finish_reason"] == answers["chat"]["choices"][0]["finish_reason"]
    assert last["usage"] == answers["chat"]["usage"] == answers["helper"]["usage"]
    assert answers["helper"]["choices"][0]["message"]["content"] == message["content"]


def test_tool_calls(answers: dict[str, Any]) -> None:
    """The SDK's helper builds the same call from a stream."""
    messages = [answers[name]["choices"][0] for name in ("toolCall", "streamedToolCall")]

    [call], [same] = (choice["message"]["tool_calls"] for choice in messages)
    assert [choice["finish_reason"] for choice in messages] == ["tool_calls"] * 2
    assert call["function"] == same["function"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_functions_are_run(answers: dict[str, Any]) -> None:
    """The helper finds functions by name and sends their results back."""
    for name in ("run", "streamedRun"):
        _, called, result, *_ = answers[name]
        assert called["tool_calls"][0]["id"] == result["tool_call_id"]
        assert (result["role"], result["content"]) == ("tool", "sunny")
    assert set(answers["asked"]) <= {"Paris", "Rome"}
    assert len(answers["asked"]) == 2


def test_errors(answers: dict[str, Any]) -> None:
    """They have the SDK's own classes, the field and the request id."""
    request_ids = [answers[name].pop("requestID") for name in ("badField", "badModel")]

    assert all(len(request_id) == 32 for request_id in request_ids)
    assert answers["badField"] == {
        "class": "BadRequestError", "status": 400, "param": "sparsity", "code": "invalid_value",
        "type": "invalid_request_error",
    }  # fmt: skip
    assert answers["badModel"] == {
        "class": "NotFoundError", "status": 404, "param": "model", "code": "model_not_found",
        "type": "invalid_request_error",
    }  # fmt: skip
