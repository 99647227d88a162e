"""The server accepts no value that the document does not allow, wherever it stands in a body."""

import copy
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from server.app import create_app
from server.protocol.anthropic import CountTokensRequest, MessagesRequest
from server.protocol.chat import ChatRequest
from server.protocol.completion import CompletionRequest
from server.protocol.responses import ResponsesRequest
from server.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from server.settings import Settings

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "f", "description": "what it does", "parameters": SCHEMA, "strict": True}
FORM = {"name": "n", "schema": SCHEMA, "strict": True}
COMMON: dict[str, Any] = {
    "model": "m", "temperature": 0.5, "top_p": 0.9, "stream": False, "sparsity": 0.5, "timeout": 5,
    "griffin": {"method": "griffin+", "mode": "fast", "draft": "ngram", "draft_tokens": 3, "compare": True},
}  # fmt: skip
OPENAI: dict[str, Any] = {
    "n": 1, "seed": 7, "stop": ["a", "b"], "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": 1.5},
    "stream_options": None, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 0, "ignore_eos": False,
}  # fmt: skip
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "s", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "u"}]},
    {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "reasoning_content": "r",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": None},
    {"role": "user", "content": "u"},
]
TOOLS = [{"type": "function", "function": FUNCTION}]
TEMPLATE: dict[str, Any] = {
    "messages": CONVERSATION, "tools": TOOLS, "add_generation_prompt": True, "continue_final_message": False,
    "chat_template_kwargs": {"a": 1}, "add_special_tokens": False,
}  # fmt: skip
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "42"},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    {"role": "user", "content": "u"},
]
BLOCKS: dict[str, Any] = {
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "b"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "42", "is_error": False}]},
    ],
    "tools": [{"name": "f", "description": "what it does", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
}
BODIES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "/v1/completions": (
        CompletionRequest,
        [
            {**COMMON, **OPENAI, "prompt": "p", "max_tokens": 5, "logprobs": 1, "echo": False, "suffix": None},
            {**COMMON, "prompt": ["p", "q"], "best_of": 1, "structured_outputs": {"choice": ["a", "b"]}},
        ],
    ),
    "/v1/chat/completions": (
        ChatRequest,
        [
            {
                **COMMON, **OPENAI, **TEMPLATE, "max_completion_tokens": 5, "logprobs": True, "top_logprobs": 2,
                "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": True,
                "reasoning_effort": "low", "max_reasoning_tokens": 5,
            },
            {
                **COMMON, "messages": CONVERSATION,
                "response_format": {"type": "json_schema", "json_schema": FORM},
            },
        ],
    ),
    "/v1/responses": (
        ResponsesRequest,
        [
            {
                **COMMON, "input": ITEMS, "instructions": "i", "max_output_tokens": 5, "store": False,
                "tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "f"},
                "parallel_tool_calls": True, "reasoning": {"effort": "low"}, "metadata": {"a": "b"},
                "text": {"format": {"type": "json_schema", **FORM}},
                "include": [], "truncation": "disabled", "top_logprobs": 0,
            },
            {**COMMON, "input": "hi"},
        ],
    ),
    "/v1/messages": (
        MessagesRequest,
        [
            {
                **COMMON, **BLOCKS, "max_tokens": 9, "top_k": 5, "stop_sequences": ["a"], "metadata": {"user_id": "u"},
                "thinking": {"type": "disabled"}, "output_config": {"effort": "low"},
            },
        ],
    ),
    "/v1/messages/count_tokens": (CountTokensRequest, [{"model": "m", **BLOCKS}]),
    "/tokenize": (
        TokenizeRequest,
        [
            {"model": "m", **TEMPLATE, "return_token_strs": True},
            {"model": "m", "prompt": "p", "add_special_tokens": True, "return_token_strs": False},
        ],
    ),
    "/detokenize": (DetokenizeRequest, [{"model": "m", "tokens": [1, 2]}]),
}  # fmt: skip
VALUES: tuple[Any, ...] = (None, True, 7, -1, 0.5, "", "x", [], [7], ["x"], [None], {}, {"type": "x"}, {"x": 7})


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings()).openapi()
    return found


def changed(body: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Copies of the body with one part, large or small, replaced or missing; each with the part's place."""
    parts = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, part in parts:
        for other in VALUES:
            yield (*place, name, "=", repr(other)), put(body, name, other)
        if isinstance(body, dict):
            yield (*place, name, "missing"), {key: value for key, value in body.items() if key != name}
        for where, inside in changed(part, (*place, name)):
            yield where, put(body, name, inside)


def put(body: Any, name: Any, part: Any) -> Any:
    body = copy.copy(body)
    body[name] = part
    return body


@pytest.mark.parametrize("path", BODIES)
def test_what_the_document_does_not_allow_is_refused(document: dict[str, Any], path: str) -> None:
    """Thousands of bodies differ from a valid one in one place."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    allows = jsonschema_rs.validator_for({**schema, "components": document["components"]})
    kind, bodies = BODIES[path]
    adapter = TypeAdapter(kind)
    wrong, accepted = [], 0
    for body in bodies:
        adapter.validate_python(copy.deepcopy(body))
        allows.validate(body)
        for place, other in changed(body):
            try:
                adapter.validate_python(copy.deepcopy(other))
            except ValidationError:
                continue
            accepted += 1
            if not allows.is_valid(other):
                wrong.append(" ".join(map(str, place)))

    assert accepted > 20 * len(bodies) or path == "/detokenize"
    assert not wrong
