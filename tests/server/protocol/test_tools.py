"""Tools and histories with calls that a request may have; a refusal says where it is wrong."""

from typing import Any

import pytest
from pydantic import ValidationError

from server.errors import InvalidField
from server.http.explain import explain
from server.protocol.chat import ChatRequest

USER = {"role": "user", "content": "hi"}
F = {"type": "function", "function": {"name": "f"}}
G = {
    "type": "function",
    "function": {"name": "g", "description": "d", "parameters": {"type": "object"}, "strict": True},
}
NAMED = {"type": "function", "function": {"name": "g"}}


def call(id: str = "1", arguments: str = "{}", name: str = "f") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def answer(id: str = "1", content: object = "42") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def refusal(**body: Any) -> InvalidField:
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate({"messages": [USER], **body})
    return explain(refused.value.errors())


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": "f"}, "tools", "valid list"),
        ({"tools": ["f"]}, "tools[0]", "must be an object"),
        ({"tools": [{}]}, "tools[0].type", "is required"),
        ({"tools": [F, {"type": "custom", "custom": {"name": "g"}}]}, "tools[1].type", "only function is supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [{"type": ["function"]}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
        ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function", ""),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is required"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "f" * 65}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
         "tools[0].function.parameters", "valid dictionary"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [[]] * 9000}}}]},
         "tools[0].function.parameters", "more than 8192"),
        ({"tools": [F] * 129}, "tools", "128"),
        ({"tools": [F, G, F]}, "tools[2].function.name", "two tools are called"),
        ({"tool_choice": "required"}, "tool_choice", "only with tools"),
        ({"tool_choice": NAMED, "tools": []}, "tool_choice", "only with tools"),
        ({"tool_choice": NAMED, "tools": [F]}, "tool_choice", "'g' is not one of tools"),
        ({"tool_choice": "any", "tools": [F]}, "tool_choice", "must be none, auto, required"),
        ({"tool_choice": "named", "tools": [F]}, "tool_choice", "must be none, auto, required"),
        ({"tool_choice": {"type": "tool"}, "tools": [F]}, "tool_choice.type", "function or allowed_tools"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [F]}, "tool_choice.function.name", "is required"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [F]}, "tool_choice.allowed_tools.mode", "must be"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, "tools": [F]},
         "tool_choice.allowed_tools.tools", "must be a list"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "valid boolean"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "use tool_choice"),
    ],
)  # fmt: skip
def test_tools_are_refused_by_name(body: dict[str, Any], param: str, words: str) -> None:
    """The error names the place as OpenAI writes paths."""
    error = refusal(**body)

    assert error.param == param
    assert words in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([answer()], "messages[0].tool_call_id", "answers no call"),
        ([USER, {"role": "tool", "content": "42"}], "messages[1].tool_call_id", "is required"),
        ([USER, calling(call()), answer("2")], "messages[2].tool_call_id", "answers no call"),
        ([USER, calling(call()), answer(), answer()], "messages[3].tool_call_id", "answers no call"),
        ([USER, calling(call()), answer(), USER, answer()], "messages[4].tool_call_id", "answers no call"),
        ([USER, calling(call())], "messages[1].tool_calls", "answers '1'"),
        ([USER, calling(call(), call("2")), answer(), USER], "messages[1].tool_calls", "answers '2'"),
        ([USER, calling(call(), call())], "messages[1].tool_calls", "same id"),
        ([{**USER, "tool_calls": [call()]}], "messages[0].tool_calls", "role assistant"),
        ([{**USER, "tool_call_id": "1"}], "messages[0].tool_call_id", "role tool"),
        ([USER, calling({**call(), "type": "custom"})], "messages[1].tool_calls[0].type", "only function"),
        ([USER, calling({"type": "function", "id": "1"})], "messages[1].tool_calls[0].function", "is required"),
        ([USER, calling({**call(), "id": ""})], "messages[1].tool_calls[0].id", "at least 1"),
        ([USER, calling({**call(), "function": {"name": "f", "arguments": {}}})],
         "messages[1].tool_calls[0].function.arguments", "valid string"),
        ([USER, calling(*[call(str(n)) for n in range(129)])], "messages[1].tool_calls", "128"),
        ([USER, calling(call()), answer(content=None)], "messages[2].content", "is required"),
        ([USER, calling(call()), answer(content=[{"type": "image_url"}])], "messages[2].content[0]", "images"),
        ([USER, {"role": "function", "name": "f", "content": "42"}], "messages[1].role", "must be one of"),
    ],
)  # fmt: skip
def test_histories_are_refused_by_name(messages: list[Any], param: str, words: str) -> None:
    """The same histories are refused as at OpenAI; the error names the message."""
    error = refusal(messages=messages)

    assert error.param == param
    assert words in str(error)


def test_a_history_with_calls() -> None:
    """Templates get arguments as objects, or as a text if they are not an object. Answers may be in any order."""
    calls = [call("1", '{"a": 1}'), call("2", ""), call("3", "[1"), call("4", "[1]")]
    answers = [answer("2", [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]), *map(answer, "431")]
    request = ChatRequest.model_validate({"messages": [USER, calling(*calls), *answers, USER]})

    _, called, first, *_ = request.conversation()
    assert [one["function"]["arguments"] for one in called["tool_calls"]] == [{"a": 1}, {}, "[1", "[1]"]
    assert called["content"] == ""
    assert first == {"role": "tool", "content": "42", "tool_call_id": "2"}
    assert request.ignored() == []


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, None),
        ({"tools": []}, None),
        ({"tools": None, "tool_choice": None}, None),
        ({"tool_choice": "auto"}, None),
        ({"tools": [F, G], "tool_choice": "none"}, None),
        ({"tools": [F, G]}, ("auto", {"f", "g"}, False)),
        ({"tools": [F, G], "parallel_tool_calls": None}, ("auto", {"f", "g"}, False)),
        ({"tools": [F, G], "parallel_tool_calls": False}, ("auto", {"f", "g"}, True)),
        ({"tools": [F, G], "tool_choice": "required"}, ("required", {"f", "g"}, False)),
        ({"tools": [F, G], "tool_choice": NAMED}, ("named", {"g"}, True)),
        ({"tools": [F, G], "tool_choice": {"type": "allowed_tools",
                                           "allowed_tools": {"mode": "required", "tools": [NAMED]}}},
         ("required", {"g"}, False)),
    ],
)  # fmt: skip
def test_which_tools_are_offered(body: dict[str, Any], wanted: object) -> None:
    """All fields about tools together decide what the model may call."""
    offered = ChatRequest.model_validate({"messages": [USER], **body}).offered()

    assert (offered and (offered.mode, offered.names, offered.single)) == wanted


def test_a_tool_as_templates_see_it() -> None:
    """Fields that are not for the model are left out; unknown keys are listed with their paths."""
    odd = {"type": "function", "function": {"name": "h", "returns": {}}, "cache_control": {}}
    request = ChatRequest.model_validate({"messages": [USER], "tools": [F, G, odd]})
    offered = request.offered()

    assert offered
    functions = [tool["function"] for tool in offered.for_template()]
    assert functions == [
        {"name": "f", "parameters": {"type": "object", "properties": {}}},
        {"name": "g", "description": "d", "parameters": {"type": "object"}},
        {"name": "h", "parameters": {"type": "object", "properties": {}}},
    ]
    assert request.ignored() == ["tools[2].cache_control", "tools[2].function.returns"]
