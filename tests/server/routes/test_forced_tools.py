"""Required calls, over HTTP: a real engine and tokenizer, with random weights that make no calls by themselves."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.server import tiny_checkpoint
from tests.server.client import post, stream
from tests.server.process import running
from tests.server.routes.test_tools import put_together

CHAT = "/v1/chat/completions"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]
NOW = {"type": "function", "function": {"name": "now"}}
ASKED = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "max_tokens": 400, "seed": 1}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("tools") / "tiny", context=2048)
    with running("--model", str(folder), "--dtype", "float32", OMP_NUM_THREADS="1") as server:
        yield server.url


def require_calls(calls: list[dict[str, Any]]) -> None:
    for call in calls:
        arguments = json.loads(call["arguments"])
        if call["name"] == "weather":
            jsonschema.validate(arguments, {**PARAMETERS, "additionalProperties": False})
        else:
            assert (call["name"], arguments) == ("now", {})


@pytest.mark.parametrize("griffin", [{"draft": "none"}, {}, {"mode": "guarded"}, {"mode": "lossless"}], ids=str)
@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_required_calls_come(url: str, sparsity: float, griffin: dict[str, Any]) -> None:
    """Several answers are calls in every mode, streamed or not."""
    asked = {**ASKED, "tool_choice": "required", "n": 2, "sparsity": sparsity, "griffin": griffin}
    whole = post(url, CHAT, **asked).raise_for_status().json()["choices"]
    events = stream(url, CHAT, **asked)

    for index, choice in enumerate(whole):
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        require_calls(calls)
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        content, streamed, reason = put_together(events, index)
        assert (content, reason) == ("", "tool_calls")
        assert [(call["name"], call["arguments"]) for call in streamed] == [
            (call["name"], call["arguments"]) for call in calls
        ]


@pytest.mark.parametrize("most", range(1, 24, 2))
@pytest.mark.parametrize("choice", ["required", NOW], ids=str)
def test_a_cut_call_is_not_content(url: str, most: int, choice: str | dict[str, Any]) -> None:
    """Wherever the limit cuts a call, its marks never reach a client, as with OpenAI."""
    asked = {**ASKED, "tool_choice": choice, "max_tokens": most}
    [whole] = post(url, CHAT, **asked).raise_for_status().json()["choices"]
    content, streamed, reason = put_together(stream(url, CHAT, **asked), 0)

    assert not whole["message"]["content"]
    assert content == ""
    assert whole["finish_reason"] == reason
    # Only the shortest call ends within the longest limits.
    assert reason == "length" or (choice == NOW and most > 15)
    calls = [call["function"] for call in whole["message"].get("tool_calls", ())]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        (call["name"], call["arguments"]) for call in streamed
    ]


@pytest.mark.parametrize("stop", ["name", '"', "}", "now"])
@pytest.mark.parametrize("choice", ["required", NOW], ids=str)
def test_a_call_that_a_stop_string_cuts_is_not_content(url: str, stop: str, choice: str | dict[str, Any]) -> None:
    """The answer is as if a limit had cut the call, streamed or not."""
    asked = {**ASKED, "tool_choice": choice, "stop": [stop]}
    [whole] = post(url, CHAT, **asked).raise_for_status().json()["choices"]
    content, streamed, reason = put_together(stream(url, CHAT, **asked), 0)

    assert not whole["message"]["content"]
    assert content == ""
    assert whole["finish_reason"] == reason in ("stop", "tool_calls")
    calls = [call["function"] for call in whole["message"].get("tool_calls", ())]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        (call["name"], call["arguments"]) for call in streamed
    ]


def test_a_stop_string_after_a_call_leaves_it_whole(url: str) -> None:
    """Agents send such a stop string, for example the mark that closes a call."""
    tool = {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
    said = {"model": "tiny", "temperature": 0, "messages": ASKED["messages"], "max_tokens": 200}
    asked = {**said, "tools": [tool], "tool_choice": {"type": "any"}, "stop_sequences": ["</tool_call>"]}
    answer = post(url, "/v1/messages", **asked).raise_for_status().json()

    assert [(block["type"], block["name"], block["input"]) for block in answer["content"]] == [("tool_use", "now", {})]
    assert answer["stop_sequence"] == "</tool_call>"


def test_a_cut_call_is_not_text_in_newer_apis(url: str) -> None:
    """/v1/responses and /v1/messages show no marks of a cut call, either."""
    said = {"model": "tiny", "temperature": 0}
    function = {"type": "function", "name": "now", "parameters": {"type": "object"}}
    response = {**said, "input": "Hi", "tools": [function], "tool_choice": "required", "max_output_tokens": 2}
    tool = {"name": "now", "input_schema": {"type": "object"}}
    message = {**said, "messages": ASKED["messages"], "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 2}
    [item] = post(url, "/v1/responses", **response).raise_for_status().json()["output"]

    assert [part["text"] for part in item["content"]] == [""]
    assert post(url, "/v1/messages", **message).raise_for_status().json()["content"] == []


@pytest.mark.parametrize(
    ("choice", "names", "reason"),
    [
        (NOW, {"now"}, "stop"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NOW]}}, {"now"}, "tool_calls"),
    ],
)
def test_a_named_tool_is_called(url: str, choice: dict[str, Any], names: set[str], reason: str) -> None:
    """No other tool is called. As with OpenAI, the reason is "stop" if the request names one tool."""
    [answer] = post(url, CHAT, **ASKED, tool_choice=choice, logprobs=True).raise_for_status().json()["choices"]

    calls = answer["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == names
    assert answer["finish_reason"] == reason
    assert (len(calls) == 1) or choice is not NOW


def test_one_call_at_most(url: str) -> None:
    """With ``parallel_tool_calls`` false, an answer has one call."""
    for seed in range(4):
        asked = {**ASKED, "seed": seed, "tool_choice": "required", "parallel_tool_calls": False}
        [answer] = post(url, CHAT, **asked).raise_for_status().json()["choices"]
        assert len(answer["message"]["tool_calls"]) == 1


def test_calls_beside_a_form(url: str) -> None:
    """With tools and a response format, an answer is a call or has that format."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "hello"}}}
    for seed in range(6):
        asked = {**ASKED, "seed": seed, "response_format": form, "temperature": 2}
        [answer] = post(url, CHAT, **asked).raise_for_status().json()["choices"]
        message = answer["message"]
        assert message["content"] in (None, '"hello"')
        assert (message["content"] is None) == bool(message.get("tool_calls"))


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "cannot be combined with tools"),
        ({"tool_choice": "required", "min_tokens": 2}, "min_tokens", "tool_choice"),
        ({"tool_choice": NOW, "ignore_eos": True}, "ignore_eos", "tool_choice"),
        ({"tool_choice": "required", "tools": [*TOOLS, {"type": "function", "function": {
            "name": "f", "parameters": {"type": "object", "properties": {"a": {"format": "nope"}}}}}]},
         "tools[2].function.parameters", "properties.a"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters.type", "must be object"),
    ],
)  # fmt: skip
def test_fields_that_calls_exclude(url: str, body: dict[str, Any], param: str, words: str) -> None:
    """The error names the field."""
    error = post(url, CHAT, **{**ASKED, **body}).json()["error"]

    assert (error["param"], words in error["message"]) == (param, True), error
