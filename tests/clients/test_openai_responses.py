"""OpenAI's own SDK for Python with /v1/responses: text, streams, parsed answers, tools and their results."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.common import MESSAGES, MODEL, tokens_at
from tests.server.scripted import ScriptedEngine, served

ASKED: dict[str, Any] = {"model": MODEL, "input": MESSAGES[0]["content"], "temperature": 0, "max_output_tokens": 8}
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "description": "Looks up a number.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


class Person(BaseModel):
    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=120)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    """A client that refuses answers that do not fit OpenAI's types."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_stream_is_the_same_text(url: str, client: openai.OpenAI, sparsity: float) -> None:
    """A chat gives the same text; a stream's last event has the response."""
    asked, before = {**ASKED, "extra_body": {"sparsity": sparsity}}, tokens_at(url, sparsity)
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=8, extra_body={"sparsity": sparsity}
    )

    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert whole.output_text == text == events[-1].response.output_text == chat.choices[0].message.content
    assert text
    assert whole.usage.output_tokens == events[-1].response.usage.output_tokens == chat.usage.completion_tokens
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.griffin["sparsity"] == sparsity
    assert tokens_at(url, sparsity) == before + 3 * whole.usage.output_tokens


def test_the_streaming_helper(client: openai.OpenAI) -> None:
    """The helper puts the events together itself."""
    with client.responses.stream(**ASKED) as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    whole = client.responses.create(**ASKED)

    assert texts[-1] == whole.output_text
    assert whole.status in ("completed", "incomplete")


def test_parse(client: openai.OpenAI) -> None:
    """An answer becomes an object of the caller's class, streamed or not."""
    asked = {**ASKED, "max_output_tokens": 100}
    parsed = client.responses.parse(**asked, text_format=Person)
    with client.responses.stream(**asked, text_format=Person) as stream:
        final = stream.get_final_response()

    assert isinstance(parsed.output_parsed, Person)
    assert final.output_parsed == parsed.output_parsed


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    """The call fits its schema; the result goes back with all items of the answer."""
    asked = {
        **ASKED,
        "max_output_tokens": 100,
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    answer = client.responses.create(**asked)
    [call] = answer.output
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    items = [*MESSAGES, *answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "42"}]
    after = client.responses.create(**{**ASKED, "input": items}, tools=[TOOL])

    assert (call.type, call.name, call.status) == ("function_call", "f", "completed")
    assert json.loads(call.arguments)["a"] <= 99
    assert final.output[0].arguments == call.arguments
    assert after.usage.input_tokens > answer.usage.input_tokens


def test_log_probabilities(client: openai.OpenAI) -> None:
    """Each token of the text has alternatives."""
    asked = {**ASKED, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = client.responses.create(**asked)
    [part] = answer.output[0].content
    streamed = list(client.responses.create(**asked, stream=True))

    assert "".join(each.token for each in part.logprobs) == part.text
    assert {len(each.top_logprobs) for each in part.logprobs} == {2}
    deltas = [each for event in streamed if event.type == "response.output_text.delta" for each in event.logprobs]
    assert [each.token for each in deltas] == [each.token for each in part.logprobs]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"model": "other"}, "model"),
    ],
)
def test_errors_name_their_field(client: openai.OpenAI, changes: Any, param: str) -> None:
    """The SDK raises its own exceptions."""
    with pytest.raises(openai.APIStatusError) as raised:
        client.responses.create(**{**ASKED, **changes})
    assert raised.value.param == param


def test_responses_are_not_stored(client: openai.OpenAI) -> None:
    """Responses are not stored, and the error says so."""
    id = client.responses.create(**ASKED).id
    for ask in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="keeps no responses"):
            ask(id)


def test_a_fault_in_a_stream() -> None:
    """An error event comes, then the failed response."""
    with (
        served(ScriptedEngine(fail_after=2)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        *_, error, failed = client.responses.create(model="scripted", input="hi", stream=True)

    assert (error.type, error.code) == ("error", "internal_error")
    assert (failed.type, failed.response.error.code) == ("response.failed", "server_error")
    assert failed.response.output_text == "ab"
