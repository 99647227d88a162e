"""Conversations: a refusal says where it is wrong and what to do."""

import inspect
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from server.errors import InvalidField
from server.http.explain import explain
from server.protocol.chat import ChatRequest
from server.protocol.completion import CompletionRequest
from server.protocol.elsewhere import TUNING
from server.protocol.message import MEDIA, ROLES
from server.protocol.template import NOT_THE_TEMPLATES
from server.protocol.tokenization import TokenizeRequest
from tests.server.client import post
from tests.server.scripted import ScriptedEngine, served

USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
TEXT = {"type": "text", "text": "a"}
ALL_ROLES = "system, developer, user, assistant, tool"


def refusal(messages: object, request: Any = ChatRequest) -> InvalidField:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(request).validate_python({"messages": messages})
    return explain(refused.value.errors())


@pytest.mark.parametrize("request_type", [ChatRequest, TokenizeRequest], ids=["chat", "tokenize"])
@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ("hi", "messages", "must be a list of objects"),
        ({"role": "user"}, "messages", "must be a list of objects"),
        ([], "messages", "at least 1 item"),
        (["hi"], "messages[0]", "must be an object with a role and a content"),
        ([USER, None], "messages[1]", "must be an object with a role and a content"),
        ([[USER]], "messages[0]", "must be an object with a role and a content"),
        ([{"content": "hi"}], "messages[0].role", f"is required: one of {ALL_ROLES}"),
        ([USER, {"content": "hi"}], "messages[1].role", "is required"),
        ([{"role": None, "content": "hi"}], "messages[0].role", f"must be one of {ALL_ROLES}"),
        ([{"role": "model", "content": "hi"}], "messages[0].role", f"must be one of {ALL_ROLES} (got 'model')"),
        ([{"role": "function", "content": "hi"}], "messages[0].role", "must be one of"),
        ([{"role": ["user"], "content": "hi"}], "messages[0].role", "must be one of"),
        ([{"role": "User", "content": "hi"}], "messages[0].role", "must be one of"),
        ([{"role": "user"}], "messages[0].content", "is required"),
        ([{"role": "user", "content": None}], "messages[0].content", "is required"),
        ([{"role": "system", "content": None}], "messages[0].content", "is required"),
        ([{"role": "tool", "tool_call_id": "1"}], "messages[0].content", "is required"),
        ([{"role": "user", "content": 7}], "messages[0].content", "must be a text, or a list of parts of type text"),
        ([{"role": "user", "content": TEXT}], "messages[0].content", "must be a text, or a list of parts"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content", "lone surrogate"),
        ([{"role": "user", "content": [TEXT, "b"]}], "messages[0].content[1]", "must be a part"),
        ([{"role": "user", "content": [TEXT] * 1025}], "messages[0].content", "at most 1024 are supported"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0].type", "is required: text"),
        ([{"role": "user", "content": [{"type": 7}]}], "messages[0].content[0].type", "must be text"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "messages[0].content[0].type", "must be text"),
        ([{"role": "user", "content": [{"type": "thinking"}]}], "messages[0].content[0].type", "must be text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "is required"),
        ([{"role": "user", "content": [{**TEXT, "text": 7}]}], "messages[0].content[0].text", "must be a text"),
        ([{"role": "user", "content": [{**TEXT, "text": "\udfff"}]}], "messages[0].content[0].text", "lone surrogate"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "messages[0].content[0].type", "text"),
        ([USER, {"role": "user", "content": [TEXT, IMAGE]}], "messages[1].content[1]", "images are not supported"),
        ([{**USER, "name": 7}], "messages[0].name", "valid string"),
        ([USER, {"role": "assistant", "reasoning": 7}], "messages[1].reasoning", "valid string"),
        ([USER, {"role": "assistant", "reasoning": "a", "reasoning_content": "b"}], "messages[1].reasoning", "differs"),
        ([{**USER, "images": ["x"]}], "messages[0].images", "is not supported"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[1].tool_calls[0].type", "is required"),
        ([USER, {"role": "assistant", "function_call": {"name": "f"}}], "messages[1].function_call", "is not"),
        ([USER, {"role": "assistant", "audio": {"id": "1"}}], "messages[1].audio", "is not supported"),
        ([USER, {"role": "assistant", "prefix": 0}], "messages[1].prefix", "is not supported"),
        ([USER, {"role": "assistant", "refusal": 7}], "messages[1].refusal", "must be a text"),
        ([USER, {"role": "assistant", "content": "a", "refusal": 7}], "messages[1].refusal", "must be a text"),
        ([USER, {"role": "assistant", "content": "a", "prefix": True}], "messages[1].prefix", "continue_final_message"),
        ([USER, {"role": "assistant", "content": "a", "partial": True}], "messages[1].partial", "is not supported"),
        ([USER, {f"key{n}": 1 for n in range(300)} | USER], "messages[1]", "302 keys"),
    ],
)  # fmt: skip
def test_a_refusal_says_where_and_what(messages: object, param: str, words: str, request_type: Any) -> None:
    """Both endpoints that take messages name the place as OpenAI writes paths."""
    error = refusal(messages, request_type)

    assert error.param == param
    assert str(error).startswith(param)
    assert words in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize("kind", MEDIA)
def test_the_error_for_other_media_says_what_is_supported(kind: str) -> None:
    """The error also says what to send instead."""
    error = refusal([{"role": "user", "content": [{"type": kind}]}])

    assert error.code == "unsupported_parameter"
    assert f"{MEDIA[kind]} are not supported; this server serves text models: send parts of type text" in str(error)


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": ""}, ""),
        ({"content": []}, ""),
        ({"content": [TEXT, TEXT]}, "aa"),
        ({"content": None, "refusal": "no"}, "no"),
        ({"content": "yes", "refusal": None}, "yes"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"content": "a", "tool_calls": [], "function_call": None, "audio": None}, "a"),
        ({"content": "a", "tool_calls": None, "annotations": [], "reasoning_content": "hm", "prefix": False}, "a"),
    ],
)
def test_what_an_assistant_has_said(turn: dict[str, Any], text: str) -> None:
    """SDKs send histories back with nulls, empty lists and turns without text."""
    request = ChatRequest(messages=[USER, {"role": "assistant", **turn}, USER])

    said = request.conversation()[1]
    assert (said["role"], said["content"]) == ("assistant", text)
    with served(ScriptedEngine()) as url:
        assert post(url, "/v1/chat/completions", messages=[USER, {"role": "assistant", **turn}], max_tokens=1).json()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("content", ["", []])
def test_an_empty_text_is_a_text(role: str, content: object) -> None:
    """Every role may have one."""
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
    before = [{"role": "assistant", "tool_calls": [called]}] if role == "tool" else []
    answer = {"tool_call_id": "1"} if role == "tool" else {}

    request = ChatRequest(messages=[*before, {"role": role, "content": content, **answer}])
    assert request.conversation()[-1]["content"] == ""


def test_a_client_cannot_set_parameters_of_the_renderer() -> None:
    """chat_template_kwargs cannot set a parameter of the tokenizer's own function."""
    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    own = {name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}

    assert own - NOT_THE_TEMPLATES == set()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "griffin": {"method": "other"}}, "griffin.method"),
        ({"prompt": "a", "griffin": {"other": 1}}, "griffin.other"),
        ({"prompt": "a", "griffin": 7}, "griffin"),
        ({"prompt": "a", "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"prompt": "a", "stop_token_ids": [1, "2"]}, "stop_token_ids"),
        ({"prompt": "a", "sparsity": 1}, "sparsity"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"max_tokens": 1}, "prompt"),
    ],
)
def test_every_nested_error_names_its_path(body: dict[str, Any], param: str) -> None:
    """Keys of objects follow a dot, positions in lists stand in brackets."""
    with pytest.raises(ValidationError) as refused:
        CompletionRequest.model_validate(body)
    error = explain(refused.value.errors())

    assert error.param == param
    assert str(error).startswith(param)


def test_keys_of_messages_that_mean_nothing_are_named() -> None:
    """The header has their paths; empty keys of an earlier answer are not listed."""
    message = {"role": "user", "content": "x", "sparisty": 1, "annotations": [], "refusal": None, "foo": False}
    with served(ScriptedEngine()) as url:
        answers = [
            post(url, path, messages=[message], **limit)
            for path, limit in (("/v1/chat/completions", {"max_tokens": 1}), ("/tokenize", {}))
        ]

    assert [(answer.status_code, answer.headers["x-griffin-ignored"]) for answer in answers] == [
        (200, "messages[0].sparisty")
    ] * 2


@pytest.mark.parametrize("name", sorted(TUNING))
def test_a_message_has_no_settings(name: str) -> None:
    """In a message a sampling setting is an unknown key, even if a request with it would be refused."""
    message = {"role": "user", "content": "x", name: "something"}
    request = ChatRequest.model_validate({"messages": [message]})

    assert request.messages[0].ignored() == [name]
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], name: "something"})


def test_reasoning_of_an_earlier_answer_goes_to_the_template() -> None:
    """The template may leave it out. An empty one is not passed on. ``reasoning`` is another name for it."""
    given = ChatRequest.model_validate(
        {"messages": [
            {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"},
            {"role": "assistant", "content": "4", "reasoning_content": ""},
            {"role": "assistant", "content": "4", "reasoning": "2 and 2"},
            {"role": "assistant", "content": "4", "reasoning": "2 and 2", "reasoning_content": ""},
            {"role": "assistant", "content": "4", "reasoning": "2 and 2", "reasoning_content": "2 and 2"},
            {"role": "assistant", "content": "4", "reasoning": "", "reasoning_content": "2 and 2"},
        ]}
    )  # fmt: skip

    assert given.conversation() == [
        {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"},
        {"role": "assistant", "content": "4"},
        *4 * [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}],
    ]
